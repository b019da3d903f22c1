"""Matrices packed for the compiled products. See `gpt2.Linear`."""

import ctypes

import torch
from torch import Tensor

from prefix_engine.huge import Arena
from prefix_engine.native.floats import float32, floats


class PackedLinear:
    """A matrix in float32, `[panels, in, panel_width]`."""

    def __init__(self, library: ctypes.CDLL, arena: Arena, weight: Tensor, bias: Tensor | None) -> None:
        """Pack weight `[in, out]`; it is not kept."""
        self._library = library
        self._inputs, self._outputs = weight.shape
        panels, width = _panels(library, self._outputs)
        self._bias = _padded(bias, panels * width)
        self._packed = arena.zeros(panels, self._inputs, width)
        self._threads = torch.get_num_threads
        library.pack_f32(*_matrix(weight), self._packed.data_ptr(), self._threads())

    def matrix(self) -> tuple[int, ...]:
        """As `Matrix` of forward.c, which is good as long as this object lives."""
        return self._inputs, self._outputs, self._packed.data_ptr(), self._bias.data_ptr(), 0, 0

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """See `gpt2.Linear`."""
        x = x.contiguous()
        out = floats(x.shape[0], self._outputs)
        self._library.linear_f32(
            x.data_ptr(),
            x.shape[0],
            self._inputs,
            self._packed.data_ptr(),
            self._outputs,
            self._bias.data_ptr(),
            gelu,
            _address(add),
            out.data_ptr(),
            self._threads(),
        )
        return out


class PackedInt8:
    """A matrix in int8, `[panels, in / 4, panel_width, 4]`, with one scale a column."""

    def __init__(self, library: ctypes.CDLL, arena: Arena, weight: Tensor, bias: Tensor | None) -> None:
        """Round and pack weight `[in, out]`; it is not kept."""
        self._library = library
        self._inputs, self._outputs = weight.shape
        panels, width = _panels(library, self._outputs)
        self._bias = _padded(bias, panels * width)
        self._fours = -(-self._inputs // 4)
        self._packed = arena.zeros(panels, self._fours, width, 4, dtype=torch.int8)
        self._scales = floats(panels * width)
        self._sums = torch.empty(panels * width, dtype=torch.int32, device="cpu")
        self._threads = torch.get_num_threads
        library.pack_i8(
            *_matrix(weight),
            self._packed.data_ptr(),
            self._scales.data_ptr(),
            self._sums.data_ptr(),
            self._threads(),
        )

    def matrix(self) -> tuple[int, ...]:
        """As `Matrix` of forward.c, which is good as long as this object lives."""
        numbers = (self._packed, self._bias, self._scales, self._sums)
        return self._inputs, self._outputs, *(tensor.data_ptr() for tensor in numbers)

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """See `gpt2.Linear`; each row of x is rounded by its own largest number."""
        x = x.contiguous()
        rounded = torch.empty(x.shape[0], self._fours * 4, dtype=torch.uint8, device="cpu")
        row_scales, out = floats(x.shape[0]), floats(x.shape[0], self._outputs)
        self._library.linear_i8(
            x.data_ptr(),
            x.shape[0],
            self._inputs,
            self._packed.data_ptr(),
            self._scales.data_ptr(),
            self._sums.data_ptr(),
            self._outputs,
            self._bias.data_ptr(),
            gelu,
            _address(add),
            rounded.data_ptr(),
            row_scales.data_ptr(),
            out.data_ptr(),
            self._threads(),
        )
        return out


def _panels(library: ctypes.CDLL, outputs: int) -> tuple[int, int]:
    width = int(library.panel_width())
    return -(-outputs // width), width


def _padded(bias: Tensor | None, size: int) -> Tensor:
    padded = torch.zeros(size, dtype=torch.float32, device="cpu")
    if bias is not None:
        padded[: len(bias)] = bias
    return padded


def _matrix(weight: Tensor) -> tuple[int, int, int, int, int]:
    return float32(weight).data_ptr(), weight.shape[0], weight.shape[1], weight.stride(0), weight.stride(1)


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
