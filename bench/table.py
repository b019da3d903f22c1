"""Rows of the report: what was compared with what, the target, and whether it was reached."""

import math
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

HEAD = "| what | target | measured | ours | against | |\n|---|---|---|---|---|---|"


@dataclass(frozen=True, slots=True)
class Row:
    """One line.

    Attributes:
        what: in the words of the promise.
        ours: this engine's figure with its unit.
        against: what it is compared with, or why it could not be measured.
        measured: what the target is about; None if it could not be measured.
        at_least: the target, if more is better.
        at_most: the target, if less is better.
        unit: of `measured` and the target.
    """

    what: str
    ours: str
    against: str
    measured: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    unit: str = "x"

    @property
    def verdict(self) -> str:
        """Whether the target was reached; one without a target is only reported."""
        if self.measured is None or math.isnan(self.measured):
            return "not measured"
        if self.at_least is None and self.at_most is None:
            return "reported"
        low = self.at_least is not None and self.measured < self.at_least
        high = self.at_most is not None and self.measured > self.at_most
        return "**missed**" if low or high else "hit"

    def markdown(self) -> str:
        """The line of the table under `HEAD`."""
        target = "reported"
        if self.at_least is not None:
            target = f">= {self.at_least:g}{self.unit}"
        elif self.at_most is not None:
            target = f"<= {self.at_most:g}{self.unit}"
        measured = "-" if self.verdict == "not measured" else f"{self.measured:.3g}{self.unit}"
        return f"| {self.what} | {target} | {measured} | {self.ours} | {self.against} | {self.verdict} |"


def paired(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratios round by round."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def interval(values: Sequence[float], share: float = 0.95) -> tuple[float, float]:
    """Bootstrap confidence interval of the median."""
    draw = random.Random(0)
    medians = sorted(statistics.median(draw.choices(values, k=len(values))) for _ in range(4000))
    cut = int(len(medians) * (1 - share) / 2)
    return medians[cut], medians[-1 - cut]
