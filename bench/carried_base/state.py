"""What a run leaves while it runs: its state, to go on from, and its log, JSON lines.

The state is one safetensors file, tensors and beside them JSON in the file's metadata, so that one rename
replaces both or neither. Nothing is pickled.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from bench.whole import whole

STATE = "training.safetensors"
LOG = "log.jsonl"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is: updates done, seconds that they took, and what the run is of."""

    update: int
    seconds: float
    recipe: dict[str, Any]
    corpus: str  # digest
    start: str  # SHA-256 of the file of the weights that it began with; empty from none


def save(folder: Path, progress: Progress, model: Any, optimisers: dict[str, torch.optim.Optimizer]) -> None:
    """Keep weights, optimisers and progress: whole or not at all."""
    with whole(folder / STATE) as making:
        save_file(_tensors(model, optimisers), making, {"progress": json.dumps(asdict(progress))})


def read(folder: Path) -> Progress | None:
    """The progress that was kept, if any."""
    if not (folder / STATE).exists():
        return None
    with safe_open(folder / STATE, "pt") as file:
        return Progress(**json.loads(file.metadata()["progress"]))


def restore(folder: Path, model: Any, optimisers: dict[str, torch.optim.Optimizer]) -> None:
    """Put the kept weights and optimisers' tensors back."""
    weights = dict(model.named_parameters())
    with safe_open(folder / STATE, "pt") as file, torch.no_grad():
        for key in file.keys():  # noqa: SIM118 - no mapping
            kind, _, name = key.partition("/")
            if kind == "weights":
                weights[name].copy_(file.get_tensor(key))
            else:
                name, _, what = name.rpartition("/")
                optimisers[kind].state[weights[name]][what] = file.get_tensor(key)


def log(folder: Path, **entry: Any) -> None:
    """Add one line to the log."""
    with (folder / LOG).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(entry) + "\n")


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of the log, oldest first."""
    return [json.loads(line) for line in (folder / LOG).read_text(encoding="utf-8").splitlines()]


def cut_log(folder: Path, update: int) -> None:
    """Drop the lines of updates that the state does not have: they will be done, and logged, again."""
    if not (folder / LOG).exists():
        return
    kept = [entry for entry in read_log(folder) if entry.get("update", 0) <= update]
    with whole(folder / LOG) as making:
        making.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")


def _tensors(model: Any, optimisers: dict[str, torch.optim.Optimizer]) -> dict[str, Tensor]:
    name_of = {weight: name for name, weight in model.named_parameters()}  # tied weights once
    found = {f"weights/{name}": weight.detach() for weight, name in name_of.items()}
    for kind, optimiser in optimisers.items():
        for weight, held in optimiser.state.items():
            found |= {f"{kind}/{name_of[weight]}/{what}": tensor for what, tensor in held.items()}
    return found
