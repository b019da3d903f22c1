"""The whole state of a run as safetensors: parameters, optimiser moments, best prefix, counters.

A run that goes on from it ends bit for bit as one that was never cut (on the CPU, with as many threads).
The order of rows is no part of it: that follows from the seed and the update number.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainer_worker.adam import Moments
from trainer_worker.evaluate import Score
from trainer_worker.updates import Learner

FORMAT = "prefixserve-run-1"


@dataclass(slots=True)
class State:
    """Counters of a run beside its tensors.

    Attributes:
        identity: digest of everything that decides the run; another run's state is never taken over.
        base: the base's score on the held-out rows.
        live: the live version's, and which version that was.
        looked_at: the update after which the held-out rows were last looked at; -1 before the first look.
        first_loss: held-out loss before the first update.
        last_loss: at the latest look.
        best_loss: at the best look, after `best_update` updates.
        stale: looks since the best one.
        curve: what was told of the losses so far: `step`, and `train_loss`, `valid_loss` where there was one.
        window: losses, accuracies and updates summed since they were last told.
        train_loss: of the latest updates, smoothed.
        trained_tokens: tokens that carried loss, over all updates.
        seconds: of all attempts that led here.
    """

    identity: str
    base: Score | None = None
    live: Score | None = None
    live_version: str | None = None
    looked_at: int = -1
    first_loss: float | None = None
    last_loss: float | None = None
    best_loss: float | None = None
    best_update: int = 0
    stale: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    window: tuple[float, float, int] = (0.0, 0.0, 0)
    train_loss: float | None = None
    trained_tokens: int = 0
    seconds: float = 0.0


def dump(learner: Learner, state: State, best: Tensor, seconds: float) -> bytes:
    """Everything, after `learner.done` updates and `seconds` of work."""
    tensors = {"best": best}
    for name, parameter in learner.form.parameters.items():
        tensors[f"value.{name}"] = parameter.detach()
        moments = learner.optimizer.moments.get(parameter)
        if moments:
            tensors[f"first.{name}"], tensors[f"second.{name}"] = moments.first, moments.second
    text = json.dumps({"format": FORMAT, "done": learner.done, "state": asdict(state) | {"seconds": seconds}})
    tensors["state"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    data: bytes = save({name: tensor.contiguous().cpu() for name, tensor in tensors.items()})
    return data


def restore(data: bytes, learner: Learner, identity: str) -> tuple[State, Tensor] | None:
    """Put a state back into `learner`; None, and nothing is changed, if it is not this run's."""
    try:
        tensors: dict[str, Tensor] = load(data)
        told = json.loads(bytes(tensors["state"].tolist()))
        if told.get("format") != FORMAT or told["state"]["identity"] != identity:
            return None
        state = _state(told["state"])
    except (SafetensorError, KeyError, ValueError, TypeError):  # TypeError: another release's state
        return None
    _put_back(tensors, learner, int(told["done"]))
    return state, tensors["best"]


def _put_back(tensors: dict[str, Tensor], learner: Learner, done: int) -> None:
    learner.done = done
    for name, parameter in learner.form.parameters.items():
        with torch.no_grad():
            parameter.copy_(tensors[f"value.{name}"])
        if f"first.{name}" in tensors:
            device = parameter.device
            learner.optimizer.moments[parameter] = Moments(
                tensors[f"first.{name}"].to(device),
                tensors[f"second.{name}"].to(device),
                torch.tensor(float(done), device=device),
            )


def _state(told: dict[str, Any]) -> State:
    scores = {name: Score(**told[name]) if told[name] else None for name in ("base", "live")}
    return State(**{**told, **scores, "window": tuple(told["window"])})
