"""Bandwidth and peak of this machine, measured beside the steps that are held against them."""

import time
from collections.abc import Callable, Iterable

import numpy as np
import torch

from bench.bound import Machine
from prefix_engine.huge import zeros
from prefix_engine.kernels import KernelError, kernels_for

_BYTES = 1 << 29
_SIDE = 3072


def measure(*, quick: bool = False) -> Machine:
    """The best of a few tries each, by the fastest way that is at hand: the bound is the stricter for it."""
    side, size = (256, 1 << 24) if quick else (_SIDE, _BYTES)
    plain, huge = torch.ones(size // 4), zeros((size // 4,), torch.float32).fill_(1.0)
    left, right = torch.randn(side, side), torch.randn(side, side)
    own = {weights: _own(weights, left, right) for weights in ("fp32", "int8")}
    reads = [plain.sum, huge.sum, *_streamed(plain, side)]
    int_mm = torch._int_mm  # noqa: SLF001 - torch has no public one
    numpy_left, numpy_right = left.numpy(), right.numpy()
    small = [torch.randint(-127, 128, (side, side), dtype=torch.int8) for _ in range(2)]
    return Machine(
        size / _fastest(reads),
        {
            "fp32": _rate(
                [lambda: left @ right, lambda: np.matmul(numpy_left, numpy_right), *own["fp32"]], side
            ),
            "int8": _rate([lambda: int_mm(small[0], small[1].t()), *own["int8"]], side),
        },
    )


def best_of(found: Iterable[Machine]) -> Machine:
    """The strictest of several measurements: the highest of each figure."""
    found = list(found)
    return Machine(
        max(machine.read for machine in found),
        {name: max(machine.peak[name] for machine in found) for name in found[0].peak},
    )


def _own(weights: str, left: torch.Tensor, right: torch.Tensor) -> list[Callable[[], object]]:
    """The engine's kernels on the same product, where they can be had: nobody may beat the peak."""
    try:
        linear = kernels_for("native", torch.device("cpu")).linear(weights)(right, None)
    except KernelError:
        return []
    return [lambda: linear(left)]


def _streamed(numbers: torch.Tensor, side: int) -> list[Callable[[], object]]:
    """The engine's product of one row, which reads a matrix of these numbers once: nobody may beat the bandwidth either."""
    matrix = numbers[: len(numbers) // side * side].view(side, -1)
    try:
        linear = kernels_for("native", torch.device("cpu")).linear("fp32")(matrix, None)
    except KernelError:
        return []
    row = torch.ones(1, side)
    return [lambda: linear(row)]


def _rate(ways: Iterable[Callable[[], object]], side: int) -> float:
    return 2 * side**3 / _fastest(ways)


def _fastest(ways: Iterable[Callable[[], object]], tries: int = 4) -> float:
    seconds = []
    for way in ways:
        for _ in range(tries):
            start = time.perf_counter()
            way()
            seconds.append(time.perf_counter() - start)
    return min(seconds)
