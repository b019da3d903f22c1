"""What computes a step: torch on any device, with graphs on CUDA, or the compiled kernels on a CPU."""

import logging
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from prefix_engine import cuda
from prefix_engine.attention import StepAttention
from prefix_engine.gpt2 import MakeLinear, MakeNorm, Network, PlainLinear, PlainNorm, hidden_states
from prefix_engine.graphs import GraphedDecode
from prefix_engine.kv import PagedMemory
from prefix_engine.quantised import Bf16Linear, QuantisedLinear
from prefix_engine.sampling import Wish, best_of, draw_each
from prefix_engine.scheduler import Plan
from prefix_engine.sequence import Sequence

log = logging.getLogger(__name__)


class KernelError(Exception):
    """The kernels that were asked for cannot be had here."""


class StepAttend(Protocol):
    """Attention of one step; its packed tokens are `order` and then the plan's chunks."""

    order: tuple[Sequence, ...]

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """See `gpt2.Attend`; stores the step's keys and values too."""


class Forward(Protocol):
    """What runs all blocks of a network."""

    def __call__(
        self, tokens: Tensor, positions: Tensor, attend: Any, wanted: Tensor | None = None, /
    ) -> Tensor:
        """See `gpt2.hidden_states`; `attend` is of the same kernels."""

    def wipe(self) -> None:
        """Zero what a call leaves in memory that the next one uses again."""


@dataclass(frozen=True, slots=True)
class PlainForward:
    """See `Forward`; keeps no memory of its own between two calls."""

    network: Network

    def __call__(
        self, tokens: Tensor, positions: Tensor, attend: Any, wanted: Tensor | None = None, /
    ) -> Tensor:
        """See `Forward`."""
        return hidden_states(self.network, tokens, positions, attend, wanted)

    def wipe(self) -> None:
        """See `Forward`."""


class Kernels(Protocol):
    """One way to compute."""

    name: str

    def linear(self, weights: str) -> MakeLinear:
        """How a matrix is made for this format of weights: `fp32`, `bf16` or `int8`."""

    def norm(self) -> MakeNorm:
        """How a layer norm is made."""

    def forward(self, network: Network) -> Forward:
        """What runs all blocks of a network made by these kernels."""

    def attention(self, memory: PagedMemory, plan: Plan) -> StepAttend:
        """Attention of one step over this memory."""

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `sampling.Best`."""

    def draws(self, logits: Tensor, wishes: dict[int, Wish]) -> dict[int, int | Exception]:
        """See `sampling.Draws`."""


class TorchKernels:
    """Torch's own operations: everywhere, and what the compiled kernels are tested against."""

    name = "torch"

    def linear(self, weights: str) -> MakeLinear:
        """See `Kernels`."""
        made: dict[str, MakeLinear] = {"int8": QuantisedLinear.of, "bf16": Bf16Linear.of}
        return made.get(weights, PlainLinear)

    def norm(self) -> MakeNorm:
        """See `Kernels`."""
        return PlainNorm

    def forward(self, network: Network) -> Forward:
        """See `Kernels`."""
        return PlainForward(network)

    def attention(self, memory: PagedMemory, plan: Plan) -> StepAttend:
        """See `Kernels`."""
        return StepAttention(memory, plan)

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `Kernels`."""
        return best_of(logits)

    def draws(self, logits: Tensor, wishes: dict[int, Wish]) -> dict[int, int | Exception]:
        """See `Kernels`."""
        return draw_each(logits, wishes)


class GraphKernels(TorchKernels):
    """Torch's operations, and steps without prompts as CUDA graphs; without the graphs on a CPU."""

    name = "graphs"


def kernels_for(name: str, device: torch.device, weights: str = "fp32", head_dim: int = 64) -> Kernels:
    """Choose by name.

    Args:
        name: `torch`, `graphs`, `native`, or `auto`: graphs on CUDA, native on a CPU with a C compiler, else
            torch.
        device: that computes.
        weights: format of the matrices.
        head_dim: of the base.

    Raises:
        KernelError: what was asked for cannot be had. `auto` goes on with torch where native is what is
            lacking, and says so in the log.
    """
    if device.type == "cuda":
        if weights == "int8":
            raise KernelError("int8 weights are made for a CPU; choose bf16 on CUDA")
        cuda.exact()
    if name == "graphs" or (name == "auto" and device.type == "cuda"):
        return GraphKernels()
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return TorchKernels()
    try:
        return _native(device, weights, head_dim)
    except KernelError as error:
        if name == "native":
            raise
        log.warning("kernels.native_unavailable why=%s", error)
        return TorchKernels()


def decode_for(kernels: Kernels, network: Network, memory: PagedMemory, rows: int) -> GraphedDecode | None:
    """What computes the steps without prompts apart from all others, if these kernels do so."""
    return GraphedDecode(network, memory, rows) if isinstance(kernels, GraphKernels) else None


def _native(device: torch.device, weights: str, head_dim: int) -> Kernels:
    from prefix_engine.native import WIDEST_HEAD, NativeKernels  # noqa: PLC0415 - compiles on first use

    if device.type != "cpu":
        raise KernelError(f"the native kernels run on a CPU, not on {device.type}")
    if head_dim > WIDEST_HEAD:
        raise KernelError(f"the native kernels take heads of up to {WIDEST_HEAD} numbers, not {head_dim}")
    if weights == "bf16":
        raise KernelError("the native kernels have no bf16 weights; choose int8, or the torch kernels")
    return NativeKernels()
