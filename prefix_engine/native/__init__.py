"""The compiled kernels: packed products and attention over pages, on a CPU."""

from collections.abc import Sequence as Items
from functools import partial

import torch
from torch import Tensor

from prefix_engine.gpt2 import MakeLinear, MakeNorm
from prefix_engine.kernels import StepAttend
from prefix_engine.kv import PagedMemory
from prefix_engine.native.attention import PagedAttention
from prefix_engine.native.library import load
from prefix_engine.native.linear import PackedInt8, PackedLinear
from prefix_engine.native.norm import NativeNorm
from prefix_engine.scheduler import Plan


class NativeKernels:
    """See `kernels.Kernels`; compiled on first use, with `torch.get_num_threads()` threads.

    Raises:
        KernelError: no C compiler, or it fails.
    """

    name = "native"

    def __init__(self) -> None:
        self._library = load()

    def linear(self, weights: str) -> MakeLinear:
        """See `kernels.Kernels`."""
        made = PackedInt8 if weights == "int8" else PackedLinear

        def make(weight: Tensor, bias: Tensor | None) -> PackedInt8 | PackedLinear:
            return made(self._library, weight, bias)

        return make

    def norm(self) -> MakeNorm:
        """See `kernels.Kernels`."""
        return partial(NativeNorm, self._library)

    def attention(self, memory: PagedMemory, plan: Plan) -> StepAttend:
        """See `kernels.Kernels`."""
        return PagedAttention(self._library, memory, plan, torch.get_num_threads())

    def erase(self, memories: Items[Tensor], pages: Items[int], page: int) -> None:
        """See `kernels.Kernels`."""
        addresses = torch.tensor([memory.data_ptr() for memory in memories])
        numbers = torch.tensor(pages)
        heads, slots, head_dim = memories[0].shape
        row = head_dim * memories[0].element_size()
        self._library.erase_pages(
            addresses.data_ptr(),
            len(memories),
            heads,
            slots * row,
            numbers.data_ptr(),
            len(pages),
            page * row,
            torch.get_num_threads(),
        )

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `kernels.Kernels`."""
        logits = logits.contiguous()
        found = torch.empty(len(logits), 2, dtype=torch.int64)
        self._library.best_of_rows(
            logits.data_ptr(), *logits.shape, found.data_ptr(), torch.get_num_threads()
        )
        return [(token, bool(finite)) for token, finite in found.tolist()]
