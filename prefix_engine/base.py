"""The frozen base: any GPT-2 checkpoint, its tokenizer and the fingerprint of both.

Loaded by transformers from safetensors only, once; nothing here trains or generates. On a CPU the weights lie
in a file that all processes map (`mapped`). The checkpoint's config decides layers, heads, head_dim and positions.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from prefix_engine.mapped import Mapping, map_parameters
from prefix_engine.tokenizer import Tokenizer

CARRIED = Path(__file__).parent / "bases"
DEFAULT_BASE = "gpt2-mini"


class BaseError(Exception):
    """The checkpoint cannot be served: not GPT-2, not safetensors, or not found."""


@dataclass(frozen=True, slots=True)
class BaseConfig:
    """The shape of a GPT-2: `width = heads * head_dim`; `positions` is n_positions."""

    layers: int
    heads: int
    head_dim: int
    width: int
    positions: int
    vocab: int
    end_id: int
    layer_norm_eps: float


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """Weights of one block; matrices are `[in, out]` as GPT-2 stores them."""

    ln_1_weight: Tensor
    ln_1_bias: Tensor
    qkv_weight: Tensor  # [width, 3 * width]
    qkv_bias: Tensor
    attention_out_weight: Tensor  # [width, width]
    attention_out_bias: Tensor
    ln_2_weight: Tensor
    ln_2_bias: Tensor
    mlp_in_weight: Tensor  # [width, inner]
    mlp_in_bias: Tensor
    mlp_out_weight: Tensor  # [inner, width]
    mlp_out_bias: Tensor


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of the base; the head is the token embedding (GPT-2 ties them)."""

    tokens: Tensor  # [vocab, width]
    positions: Tensor  # [positions, width]
    layers: tuple[LayerWeights, ...]
    ln_f_weight: Tensor
    ln_f_bias: Tensor

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor with a stable name, in a stable order."""
        yield "tokens", self.tokens
        yield "positions", self.positions
        for i, layer in enumerate(self.layers):
            for field in fields(layer):
                yield f"{i}.{field.name}", getattr(layer, field.name)
        yield "ln_f_weight", self.ln_f_weight
        yield "ln_f_bias", self.ln_f_bias


@dataclass(frozen=True, slots=True, eq=False)
class Base:
    """One frozen GPT-2 with its tokenizer; `fingerprint` is a SHA-256 in hex of both.

    Attributes:
        mapping: the file that the weights are views of, read-only; None if they are this process's own.
    """

    name: str
    config: BaseConfig
    weights: Weights
    tokenizer: Tokenizer
    fingerprint: str
    device: torch.device
    mapping: Mapping | None = None

    def emptied(self) -> "Base":
        """The same base without its blocks, for who only asks what it is: a packed copy computes."""
        return replace(self, weights=replace(self.weights, layers=()))

    def release(self) -> None:
        """Give back what this process has touched of the mapped file, for who has packed it."""
        if self.mapping is not None:
            self.mapping.release()


def checkpoint_of(name: str) -> str:
    """Where transformers finds a base: the folder of a carried one, else the name, a folder or one of the hub."""
    carried = CARRIED / name
    return str(carried) if (carried / "config.json").is_file() else name


def load_base(name: str = DEFAULT_BASE, device: str | None = None) -> Base:
    """Load a base by the name of a carried one, a folder, or a name on the model hub.

    Args:
        name: `gpt2-mini`, a folder with config.json, model.safetensors and tokenizer.json, or a hub name.
        device: torch device; `cuda` when there is one, else `cpu`, if not given.

    Raises:
        BaseError: no such checkpoint, not in safetensors, or not GPT-2 as served here.
    """
    from transformers import AutoTokenizer, GPT2LMHeadModel  # noqa: PLC0415 - slow, and only needed here
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()

    place = checkpoint_of(name)
    try:
        model = GPT2LMHeadModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # absent, or damaged in some way
        raise BaseError(f"no GPT-2 checkpoint in safetensors at {name!r}: {error}") from error
    mapping = map_parameters(model, place) if _device_of(device).type == "cpu" else None
    return from_transformers(name.rstrip("/").rsplit("/", 1)[-1], model, tokenizer, device, mapping)


def from_transformers(
    name: str, model: Any, tokenizer: Any, device: str | None = None, mapping: Mapping | None = None
) -> Base:
    """Take the weights of a transformers `GPT2LMHeadModel` and its fast tokenizer over, frozen.

    Args:
        name: of the base.
        model: whose weights lie in `mapping`, if there is one.
        tokenizer: of transformers.
        device: torch device; as for `load_base`.
        mapping: see `map_parameters`.

    Raises:
        BaseError: the model's config asks for arithmetic that is not GPT-2's.
    """
    target = _device_of(device)
    config = _config_of(model.config)
    weights = _weights_of(model)
    own = Tokenizer(tokenizer.backend_tokenizer, config.end_id)
    fingerprint = _fingerprint(config, weights, own)
    placed = _moved(weights, target, mapped=mapping is not None)
    return Base(name, config, placed, own, fingerprint, target, mapping)


def _device_of(device: str | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))


def _config_of(config: Any) -> BaseConfig:
    wrong = [
        (config.model_type != "gpt2", "model_type must be gpt2"),
        (config.activation_function != "gelu_new", "activation_function must be gelu_new"),
        (not config.scale_attn_weights, "scale_attn_weights must be true"),
        (config.scale_attn_by_inverse_layer_idx, "scale_attn_by_inverse_layer_idx must be false"),
        (config.add_cross_attention, "add_cross_attention must be false"),
        (not config.tie_word_embeddings, "tie_word_embeddings must be true"),
        (config.eos_token_id is None, "eos_token_id must be set"),
    ]
    for bad, why in wrong:
        if bad:
            raise BaseError(f"this checkpoint cannot be served: {why}")
    return BaseConfig(
        layers=config.n_layer,
        heads=config.n_head,
        head_dim=config.n_embd // config.n_head,
        width=config.n_embd,
        positions=config.n_positions,
        vocab=config.vocab_size,
        end_id=config.eos_token_id,
        layer_norm_eps=config.layer_norm_epsilon,
    )


def _weights_of(model: Any) -> Weights:
    body = model.transformer
    layers = tuple(
        LayerWeights(
            ln_1_weight=block.ln_1.weight,
            ln_1_bias=block.ln_1.bias,
            qkv_weight=block.attn.c_attn.weight,
            qkv_bias=block.attn.c_attn.bias,
            attention_out_weight=block.attn.c_proj.weight,
            attention_out_bias=block.attn.c_proj.bias,
            ln_2_weight=block.ln_2.weight,
            ln_2_bias=block.ln_2.bias,
            mlp_in_weight=block.mlp.c_fc.weight,
            mlp_in_bias=block.mlp.c_fc.bias,
            mlp_out_weight=block.mlp.c_proj.weight,
            mlp_out_bias=block.mlp.c_proj.bias,
        )
        for block in body.h
    )
    return Weights(body.wte.weight, body.wpe.weight, layers, body.ln_f.weight, body.ln_f.bias)


def _moved(weights: Weights, device: torch.device, *, mapped: bool) -> Weights:
    """On the device. What lies in a mapping of ours stays there. Else only the blocks' matrices may stay views of the
    file, which transformers maps into memory: whoever packs and drops them keeps the rest, and one small view would
    keep the whole file resident.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device).contiguous()

    def own(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, copy=not mapped).contiguous()

    layers = tuple(
        LayerWeights(
            **{
                field.name: (move if getattr(layer, field.name).dim() > 1 else own)(
                    getattr(layer, field.name)
                )
                for field in fields(layer)
            }
        )
        for layer in weights.layers
    )
    return Weights(
        own(weights.tokens),
        own(weights.positions),
        layers,
        own(weights.ln_f_weight),
        own(weights.ln_f_bias),
    )


def _fingerprint(config: BaseConfig, weights: Weights, tokenizer: Tokenizer) -> str:
    digest = hashlib.sha256(repr(config).encode())
    for name, tensor in weights.named():
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().to("cpu", torch.float32).contiguous().numpy().data)
    digest.update(tokenizer.to_json().encode())
    return digest.hexdigest()
