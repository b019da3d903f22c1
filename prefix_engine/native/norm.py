"""Layer norm by the compiled kernel: torch's costs a step a wake of its threads at each of two norms a layer."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class NativeNorm:
    """See `gpt2.Norm`; weight and bias `[width]` are float32."""

    library: ctypes.CDLL
    weight: Tensor
    bias: Tensor
    eps: float

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
