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
_ROWS = 512  # of a prompt's products
_MATRICES = ((768, 3072), (3072, 768))  # of a block's MLP: inputs, outputs

Way = tuple[Callable[[], object], float]  # and what it reads or computes


def measure(*, quick: bool = False, device: str = "cpu") -> Machine:
    """The best of a few tries each, by the fastest way that is at hand: the bound is the stricter for it.

    Products are a large square one, and those of a prompt in the model's own shapes: their operands lie in the caches.
    """
    side, size = (256, 1 << 24) if quick else (_SIDE, _BYTES)
    shapes = [(side, side, side), *((_ROWS, *matrix) for matrix in _MATRICES)]
    if device != "cpu":
        return _of_accelerator(size, shapes, torch.device(device))
    plain, huge = torch.ones(size // 4), zeros((size // 4,), torch.float32).fill_(1.0)
    reads: list[Way] = [(way, size) for way in (plain.sum, huge.sum, *_streamed(plain, side))]
    fp32 = [way for shape in shapes for way in _products(*shape)]
    int8 = [way for shape in shapes for way in _int8_products(*shape)]
    return Machine(_rate(reads), {"fp32": _rate(fp32), "int8": _rate(int8)})


def best_of(found: Iterable[Machine]) -> Machine:
    """The strictest of several measurements: the highest of each figure."""
    found = list(found)
    return Machine(
        max(machine.read for machine in found),
        {name: max(machine.peak[name] for machine in found) for name in found[0].peak},
    )


def _products(rows: int, inputs: int, outputs: int) -> list[Way]:
    left, right = torch.randn(rows, inputs), torch.randn(inputs, outputs)
    numpy_left, numpy_right = left.numpy(), right.numpy()
    ways = [lambda: left @ right, lambda: np.matmul(numpy_left, numpy_right), *_own("fp32", left, right)]
    return [(way, 2.0 * rows * inputs * outputs) for way in ways]


def _int8_products(rows: int, inputs: int, outputs: int) -> list[Way]:
    left = torch.randint(-127, 128, (rows, inputs), dtype=torch.int8)
    right = torch.randint(-127, 128, (outputs, inputs), dtype=torch.int8)
    int_mm = torch._int_mm  # noqa: SLF001 - torch has no public one
    own = _own("int8", torch.randn(rows, inputs), torch.randn(inputs, outputs))
    return [(way, 2.0 * rows * inputs * outputs) for way in (lambda: int_mm(left, right.t()), *own)]


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


def _of_accelerator(size: int, shapes: Iterable[tuple[int, int, int]], device: torch.device) -> Machine:
    """The same by torch's products on another device, in float32 and bfloat16; a way ends when the device has ended."""
    module = torch.get_device_module(device)

    def ended(way: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            way()
            module.synchronize(device)

        return run

    def product(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Way:
        left = torch.randn(rows, inputs, device=device, dtype=dtype)
        right = torch.randn(inputs, outputs, device=device, dtype=dtype)
        return ended(lambda: left @ right), 2.0 * rows * inputs * outputs

    numbers = torch.ones(size // 4, device=device)
    peaks = {
        name: _rate([product(*shape, dtype) for shape in shapes])
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    return Machine(_rate([(ended(numbers.sum), size)]), peaks)


def _rate(ways: Iterable[Way], tries: int = 4) -> float:
    """The most that one of them reads or computes in a second."""
    best = 0.0
    for way, amount in ways:
        for _ in range(tries):
            start = time.perf_counter()
            way()
            best = max(best, amount / (time.perf_counter() - start))
    return best
