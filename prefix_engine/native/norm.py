"""Layer norm by the compiled kernel: torch's costs a step a wake of its threads at each of two norms a layer."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_engine.native.floats import float32


@dataclass(frozen=True, slots=True)
class NativeNorm:
    """See `gpt2.Norm`; weight and bias `[width]` are float32."""

    library: ctypes.CDLL
    weight: Tensor
    bias: Tensor
    eps: float

    def __post_init__(self) -> None:
        float32(self.weight)
        float32(self.bias)

    def __call__(self, x: Tensor) -> Tensor:
        """See `gpt2.Norm`."""
        x = x.contiguous()
        out = torch.empty_like(x)
        self.library.norm_f32(
            x.data_ptr(),
            *x.shape,
            self.weight.data_ptr(),
            self.bias.data_ptr(),
            self.eps,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out
