"""The compiled kernels: packed products and attention over pages, on a CPU."""

from functools import partial

import torch
from torch import Tensor

from prefix_engine.gpt2 import MakeLinear, MakeNorm, Network
from prefix_engine.huge import Arena
from prefix_engine.kv import PagedMemory
from prefix_engine.native.attention import PagedAttention
from prefix_engine.native.forward import Forward
from prefix_engine.native.library import load
from prefix_engine.native.linear import PackedInt8, PackedLinear
from prefix_engine.native.norm import NativeNorm
from prefix_engine.sampling import Wish
from prefix_engine.scheduler import Plan

WIDEST_HEAD = 256  # numbers of a head, WIDEST in queries.h


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
        made, arena = PackedInt8 if weights == "int8" else PackedLinear, Arena()

        def make(weight: Tensor, bias: Tensor | None) -> PackedInt8 | PackedLinear:
            return made(self._library, arena, weight, bias)

        return make

    def norm(self) -> MakeNorm:
        """See `kernels.Kernels`."""
        return partial(NativeNorm, self._library)

    def forward(self, network: Network) -> Forward:
        """See `kernels.Kernels`; the network's parts are made by `linear` and `norm`."""
        return Forward(self._library, network)

    def attention(self, memory: PagedMemory, plan: Plan) -> PagedAttention:
        """See `kernels.Kernels`."""
        return PagedAttention(self._library, memory, plan, torch.get_num_threads())

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `kernels.Kernels`."""
        logits = logits.contiguous()
        found = torch.empty(len(logits), 2, dtype=torch.int64, device="cpu")
        self._library.best_of_rows(
            logits.data_ptr(), *logits.shape, found.data_ptr(), torch.get_num_threads()
        )
        return [(token, bool(finite)) for token, finite in found.tolist()]

    def draws(self, logits: Tensor, wishes: dict[int, Wish]) -> dict[int, int | Exception]:
        """See `kernels.Kernels`."""
        logits, rows = logits.contiguous(), torch.tensor(list(wishes), device="cpu")
        wished = torch.tensor(list(wishes.values()), dtype=torch.float64, device="cpu")
        found = torch.empty(len(wishes), dtype=torch.int64, device="cpu")
        self._library.draw_tokens(
            *(logits.data_ptr(), logits.shape[1], rows.data_ptr(), wished.data_ptr(), len(wishes)),
            *(found.data_ptr(), torch.get_num_threads()),
        )
        tokens = zip(wishes, found.tolist(), strict=True)
        return {row: MemoryError("no memory for a draw") if token < 0 else token for row, token in tokens}
