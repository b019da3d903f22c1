"""Memory in huge pages, where the system has them: large tensors that every step reads from end to end.

In pages of 4 KiB the look-up of addresses costs such reads a fifth to a third of the bandwidth on a virtual
machine. Memory comes into being when it is first touched, zero, some 2 MiB at a time.
"""

import ctypes
import math
import mmap
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

_CHUNK = 64 << 20  # bytes that an arena takes at least
_LINE = 64  # bytes; every tensor of an arena begins at a multiple
_POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14; mmap.madvise would keep the interpreter


def zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros on the CPU, in memory of its own; given back when nobody refers to it any more."""
    count = math.prod(shape)
    memory = mmap.mmap(-1, max(1, count * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return (
        torch.frombuffer(memory, dtype=dtype, count=count).view(*shape)
        if count
        else torch.zeros(*shape, dtype=dtype)
    )


def populate(tensor: Tensor) -> None:
    """Have the system bring the memory of a dense tensor on the CPU into being, from any thread.

    What is there already stays as it is, whoever writes meanwhile. A huge page that the machine never touched takes
    milliseconds, which the caller then takes and not the thread that writes first. Nothing on a system without it.
    """
    begin = tensor.data_ptr() // mmap.PAGESIZE * mmap.PAGESIZE
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).madvise(
            ctypes.c_void_p(begin),
            ctypes.c_size_t(tensor.data_ptr() + tensor.nbytes - begin),
            _POPULATE_WRITE,
        )


class Arena:
    """Tensors side by side, so that they share huge pages; freed when none of a chunk's is left."""

    def __init__(self) -> None:
        self._rest = torch.empty(0, dtype=torch.uint8)

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """A tensor of zeros."""
        size = math.prod(shape) * dtype.itemsize
        if size > len(self._rest):
            self._rest = zeros((max(size, _CHUNK),), torch.uint8)
        own, self._rest = self._rest[:size], self._rest[-(-size // _LINE) * _LINE :]
        return own.view(dtype).view(*shape)
