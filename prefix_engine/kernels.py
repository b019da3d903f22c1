"""What computes a step: matrices and attention, by torch on any device or by the compiled kernels on a CPU."""

import logging
from typing import Protocol

import torch
from torch import Tensor

from prefix_engine.attention import StepAttention
from prefix_engine.gpt2 import MakeLinear, PlainLinear
from prefix_engine.kv import PagedMemory
from prefix_engine.quantised import QuantisedLinear
from prefix_engine.sampling import best_of
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


class Kernels(Protocol):
    """One way to compute."""

    name: str

    def linear(self, weights: str) -> MakeLinear:
        """How a matrix is made for this format of weights, `fp32` or `int8`."""

    def attention(self, memory: PagedMemory, plan: Plan) -> StepAttend:
        """Attention of one step over this memory."""

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `sampling.Best`."""


class TorchKernels:
    """Torch's own operations: everywhere, and what the compiled kernels are tested against."""

    name = "torch"

    def linear(self, weights: str) -> MakeLinear:
        """See `Kernels`."""
        return QuantisedLinear.of if weights == "int8" else PlainLinear

    def attention(self, memory: PagedMemory, plan: Plan) -> StepAttend:
        """See `Kernels`."""
        return StepAttention(memory, plan)

    def best(self, logits: Tensor) -> list[tuple[int, bool]]:
        """See `Kernels`."""
        return best_of(logits)


def kernels_for(name: str, device: torch.device) -> Kernels:
    """Choose by name: `torch`, `native`, or `auto`, which is native on a CPU with a C compiler, else torch.

    Raises:
        KernelError: `native` where it cannot be had; `auto` says so in the log and goes on with torch.
    """
    if name == "torch" or (name == "auto" and device.type != "cpu"):
        return TorchKernels()
    from prefix_engine.native import NativeKernels  # noqa: PLC0415 - compiles on first use

    if device.type != "cpu":
        raise KernelError(f"the native kernels run on a CPU, not on {device.type}")
    try:
        return NativeKernels()
    except KernelError as error:
        if name == "native":
            raise
        log.warning("kernels.native_unavailable why=%s", error)
        return TorchKernels()
