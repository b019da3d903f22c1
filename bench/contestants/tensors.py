"""The prefixes of a workload, the same numbers for every contestant that can use them."""

import torch
from torch import Tensor

SPREAD = 0.5  # standard deviation; keys of trained prefixes are of this order


def prefix_tensor(layers: int, heads: int, head_dim: int, m: int, number: int) -> Tensor:
    """Random keys and values `[layers, 2, heads, m, head_dim]` of one prefix."""
    generator = torch.Generator().manual_seed(1000 * m + number)
    return torch.randn(layers, 2, heads, m, head_dim, generator=generator) * SPREAD
