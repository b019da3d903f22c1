"""GPT-2's arithmetic over packed tokens, shared by serving and training.

Every linear layer sees one packed list of tokens `[n, width]`, whatever rows they belong to; only
attention knows rows, prefixes and caches, and it is passed in. What multiplies is passed in too: the
matrices of a `Network` are torch's or packed ones. Gradients flow to whatever keys and values the
attention mixes in; the base itself has none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from prefix_engine.base import Base, BaseConfig

# (layer, qkv [n, 3, heads, head_dim] of the n packed tokens) -> [n, heads, head_dim]
Attend = Callable[[int, Tensor], Tensor]


class Linear(Protocol):
    """A matrix `[in, out]` with its bias."""

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """`x [n, in]` times the matrix plus the bias, through GELU (tanh form) if told, plus `add [n, out]`."""


# weight [in, out] and bias [out], if there is one -> the matrix as it will be multiplied with
MakeLinear = Callable[[Tensor, Tensor | None], Linear]

# Layer norm of each row: [n, width] to the same
Norm = Callable[[Tensor], Tensor]

# weight [width], bias [width], epsilon -> the layer norm
MakeNorm = Callable[[Tensor, Tensor, float], Norm]


@dataclass(frozen=True, slots=True)
class PlainLinear:
    """The matrix as it was loaded, multiplied by torch; differentiable in x."""

    weight: Tensor
    bias: Tensor | None

    def __call__(self, x: Tensor, *, gelu: bool = False, add: Tensor | None = None) -> Tensor:
        """See `Linear`."""
        y = x @ self.weight if self.bias is None else torch.addmm(self.bias, x, self.weight)
        y = functional.gelu(y, approximate="tanh") if gelu else y
        return y if add is None else y.add_(add)  # no gradient needs y as it was


@dataclass(frozen=True, slots=True)
class PlainNorm:
    """Torch's layer norm, differentiable; see `Norm`."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """See `Norm`."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer."""

    ln_1: Norm
    qkv: Linear
    attention_out: Linear
    ln_2: Norm
    mlp_in: Linear
    mlp_out: Linear


@dataclass(frozen=True, slots=True)
class Network:
    """A base ready to compute with."""

    config: BaseConfig
    device: torch.device
    tokens: Tensor  # [vocab, width]
    positions: Tensor  # [positions, width]
    blocks: tuple[Block, ...]
    ln_f: Norm
    head: Linear


def network_of(base: Base, linear: MakeLinear = PlainLinear, norm: MakeNorm = PlainNorm) -> Network:
    """Make each matrix of a base by `linear`, each norm by `norm`; the head is the token embedding (GPT-2 ties them)."""
    weights, eps = base.weights, base.config.layer_norm_eps
    blocks = tuple(
        Block(
            norm(layer.ln_1_weight, layer.ln_1_bias, eps),
            linear(layer.qkv_weight, layer.qkv_bias),
            linear(layer.attention_out_weight, layer.attention_out_bias),
            norm(layer.ln_2_weight, layer.ln_2_bias, eps),
            linear(layer.mlp_in_weight, layer.mlp_in_bias),
            linear(layer.mlp_out_weight, layer.mlp_out_bias),
        )
        for layer in weights.layers
    )
    ln_f = norm(weights.ln_f_weight, weights.ln_f_bias, eps)
    head = linear(weights.tokens.T, None)
    return Network(base.config, base.device, weights.tokens, weights.positions, blocks, ln_f, head)


def hidden_states(
    network: Network, tokens: Tensor, positions: Tensor, attend: Attend, wanted: Tensor | None = None
) -> Tensor:
    """Run all blocks over packed tokens.

    Args:
        network: the frozen model.
        tokens: token ids `[n]`.
        positions: position of each token `[n]`; text token t of a row sits at position_offset + t.
        attend: mixes each token with what its own row may see.
        wanted: places `[k]` of the tokens whose hidden states are asked for; None is all of them. The
            others end with the last block's attention.

    Returns:
        Final hidden states `[k, width]`, after the last layer norm.
    """
    config = network.config
    x = network.tokens[tokens] + network.positions[positions]
    for i, block in enumerate(network.blocks):
        qkv = block.qkv(block.ln_1(x)).view(-1, 3, config.heads, config.head_dim)
        mixed = attend(i, qkv).reshape(-1, config.width)
        if wanted is not None and i == len(network.blocks) - 1:
            if not len(wanted):
                return x[wanted]
            x, mixed = x[wanted], mixed[wanted]
        x = block.attention_out(mixed, add=x)
        x = block.mlp_out(block.mlp_in(block.ln_2(x), gelu=True), add=x)
    return network.ln_f(x)
