"""A job's losses as a line of blocks, drawn from its events: how the training went, at a glance."""

from collections.abc import Iterable, Sequence
from typing import Any

from service.cli.terminal import number

_BLOCKS = "▁▂▃▄▅▆▇█"
_WIDEST = 40
_CURVES = (("train_loss", "train"), ("valid_loss", "held-out"))


def curves(events: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each loss that the events tell of; `events` as the service lists them, newest first."""
    told = [event["data"] for event in events if event["type"] == "metrics" and event.get("data")]
    by_step = sorted((data for data in told if "step" in data), key=lambda data: data["step"])
    lines = []
    for field, shown in _CURVES:
        losses = [data[field] for data in by_step if data.get(field) is not None]
        if len(losses) > 1:
            ends = f"{number(losses[0])} -> {number(losses[-1])}"
            lines.append(f"{shown:<8} {blocks(thinned(losses))} {ends}")
    return lines


def blocks(values: Sequence[float]) -> str:
    """A block for each value, the lowest value the lowest block."""
    low, high = min(values), max(values)
    steps = len(_BLOCKS) - 1
    return "".join(_BLOCKS[round((value - low) / (high - low or 1.0) * steps)] for value in values)


def thinned(values: Sequence[float], most: int = _WIDEST) -> Sequence[float]:
    """At most `most` of the values, evenly, the first and the last among them."""
    if len(values) <= most:
        return values
    return [values[round(i * (len(values) - 1) / (most - 1))] for i in range(most)]
