"""GPT-2's arithmetic over packed tokens, shared by serving and training.

Every linear layer sees one packed list of tokens `[n, width]`, whatever rows they belong to; only
attention knows rows, prefixes and caches, and it is passed in. Gradients flow to whatever keys and
values the attention mixes in; the base itself has none.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from prefix_engine.base import Base, LayerWeights

# (layer, query, key, value), each [n, heads, head_dim] of the n packed tokens -> [n, heads, head_dim]
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


def hidden_states(base: Base, tokens: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """Run all blocks over packed tokens.

    Args:
        base: the frozen model.
        tokens: token ids `[n]`.
        positions: position of each token `[n]`; text token t of a row sits at position_offset + t.
        attend: mixes each token with what its own row may see.

    Returns:
        Final hidden states `[n, width]`, after the last layer norm.
    """
    weights, eps = base.weights, base.config.layer_norm_eps
    x = weights.tokens[tokens] + weights.positions[positions]
    for i, layer in enumerate(weights.layers):
        x = x + _attention(base, i, layer, x, attend)
        y = functional.layer_norm(x, (base.config.width,), layer.ln_2_weight, layer.ln_2_bias, eps)
        y = functional.gelu(torch.addmm(layer.mlp_in_bias, y, layer.mlp_in_weight), approximate="tanh")
        x = x + torch.addmm(layer.mlp_out_bias, y, layer.mlp_out_weight)
    return functional.layer_norm(x, (base.config.width,), weights.ln_f_weight, weights.ln_f_bias, eps)


def logits_of(base: Base, hidden: Tensor) -> Tensor:
    """Scores of the next token: hidden `[n, width]` -> `[n, vocab]`; the head is the token embedding."""
    return hidden @ base.weights.tokens.T


def _attention(base: Base, i: int, layer: LayerWeights, x: Tensor, attend: Attend) -> Tensor:
    config = base.config
    y = functional.layer_norm(x, (config.width,), layer.ln_1_weight, layer.ln_1_bias, config.layer_norm_eps)
    qkv = torch.addmm(layer.qkv_bias, y, layer.qkv_weight)
    query, key, value = qkv.view(-1, 3, config.heads, config.head_dim).unbind(1)
    mixed = attend(i, query, key, value).reshape(-1, config.width)
    return torch.addmm(layer.attention_out_bias, mixed, layer.attention_out_weight)
