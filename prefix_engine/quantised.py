"""Products in smaller numbers by torch: int8, and bfloat16.

int8: weights with one scale a column, activations with one scale a row.
A scale for the whole batch, as torch's dynamic quantisation takes it, would let the size of one row's
numbers change another row's result. Here no row sees its neighbours.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from prefix_engine.cuda import product

_MOST = 127.0
_TINY = 1e-30  # rows below it are zero: 127 over them would not be finite


@dataclass(frozen=True, slots=True)
class QuantisedLinear:
    """A matrix in int8; see `gpt2.Linear`."""

    weight: Tensor  # [in, out] int8
    scales: Tensor  # [out]
    bias: Tensor | None

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Round a matrix `[in, out]` to int8, symmetric, by column."""
        scales = weight.abs().amax(0) / _MOST
        scales = torch.where(scales > 0, scales, torch.ones_like(scales))
        return cls((weight / scales).round().to(torch.int8).contiguous(), scales, bias)

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """See `gpt2.Linear`; a row that is not finite comes out as NaN, alone."""
        most = x.abs().amax(1, keepdim=True)
        finite = most.isfinite()
        factor = torch.where(finite & (most > _TINY), torch.full_like(most, _MOST) / most, 0.0)
        q = torch.where(finite, x * factor, 0.0).round().to(torch.int8)
        scale = torch.where(finite, most / _MOST, torch.nan)
        y = torch._int_mm(q, self.weight).float() * (scale * self.scales)  # noqa: SLF001 - torch has no public one
        y = y if self.bias is None else y + self.bias
        y = functional.gelu(y, approximate="tanh") if gelu else y
        return y if add is None else y + add


@dataclass(frozen=True, slots=True)
class Bf16Linear:
    """A matrix in bfloat16; see `gpt2.Linear`.

    What goes into the product is rounded to bfloat16; sums, bias, GELU and all that stands between two
    products stay in float32, as under torch's autocast, and here the product's result does too: logits
    rounded to bfloat16 would make ties of tokens that differ.
    """

    weight: Tensor  # [in, out] bfloat16
    bias: Tensor | None  # float32

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor | None) -> Self:
        """Round a matrix `[in, out]` to bfloat16; its layout in memory stays."""
        return cls(weight.to(torch.bfloat16), bias)

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """See `gpt2.Linear`; float32 in and out."""
        y = product(x.to(torch.bfloat16), self.weight)
        y = y if self.bias is None else y + self.bias
        y = functional.gelu(y, approximate="tanh") if gelu else y
        return y if add is None else y + add
