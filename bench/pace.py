"""Reads the pace of a batch out of the times at which its tokens came. Plain Python.

`times` are, for each request, seconds from the start of the workload at which each of its tokens came.
"""

import statistics
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

Times = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Step:
    """One decode step of the whole batch.

    Attributes:
        seconds: from the step before.
        generated: tokens of each row that its attention saw, the mean over the rows.
    """

    seconds: float
    generated: float


def decode_steps(times: Times) -> list[Step]:
    """The steps in which every row decoded: no prompt is left, and nobody has ended."""
    start, stop = max(row[0] for row in times), min(row[-1] for row in times)
    clock = [at for at in times[0] if start <= at <= stop]
    return [
        Step(late - early, statistics.fmean(bisect_right(row, early) for row in times))
        for early, late in pairwise(clock)
    ]


def step_s(times: Times) -> float:
    """Median seconds of a step in which every row decoded."""
    return statistics.median(step.seconds for step in decode_steps(times))


def longest_gap_s(times: Times, start: float, stop: float) -> float:
    """Longest wait of any row for its next token that begins or ends between two moments."""
    gaps = (late - early for row in times for early, late in pairwise(row) if late >= start and early <= stop)
    return max(gaps)
