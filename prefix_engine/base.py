"""The frozen base: any GPT-2 checkpoint, its tokenizer and the fingerprint of both.

Read from safetensors only, once (`checkpoint`); nothing here trains or generates. On a CPU the weights lie
in a file that all processes map (`mapped`). The checkpoint's config decides layers, heads, head_dim and positions.
"""

import hashlib
from collections.abc import Iterator
from collections.abc import Mapping as Named
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from prefix_engine.checkpoint import BaseError, body_of, read_checkpoint
from prefix_engine.mapped import Mapping
from prefix_engine.tokenizer import Tokenizer

DEFAULT_BASE = "gpt2-mini"
# What transformers' GPT2Config takes for a key that config.json leaves out.
_DEFAULTS: dict[str, Any] = {
    "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True,
    "eos_token_id": 50256,
}  # fmt: skip


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


def load_base(name: str = DEFAULT_BASE, device: str | None = None) -> Base:
    """Load a base by the name of a carried one, a folder, or a name on the model hub.

    Args:
        name: `gpt2-mini`, a folder with config.json, model.safetensors and tokenizer.json, or a hub name.
        device: torch device; `cuda` when there is one, else `cpu`, if not given.

    Raises:
        BaseError: no such checkpoint, not in safetensors, or not GPT-2 as served here; no such device.
    """
    target = _device_of(device)
    read = read_checkpoint(name, mapped=target.type == "cpu")
    try:
        return _base(_last(name), read.config, read.weights, read.tokenizer, target, read.mapping)
    except BaseError as error:
        raise BaseError(f"the checkpoint {name!r} cannot be served: {error}") from error


def from_transformers(name: str, model: Any, tokenizer: Any, device: str | None = None) -> Base:
    """Take the weights of a transformers `GPT2LMHeadModel` in float32 and its fast tokenizer over, frozen.

    Raises:
        BaseError: the model's config asks for arithmetic that is not GPT-2's.
    """
    weights, backend = body_of(model), tokenizer.backend_tokenizer
    return _base(_last(name), model.config.to_dict(), weights, backend, _device_of(device), None)


def _last(name: str) -> str:
    return name.rstrip("/").rsplit("/", 1)[-1]


def _base(
    name: str,
    told: Named[str, Any],
    found: Named[str, Tensor],
    backend: Any,
    device: torch.device,
    mapping: Mapping | None,
) -> Base:
    config, inner = _config_of(_DEFAULTS | dict(told))
    weights = _weights_of(config, inner, found)
    try:
        tokenizer = Tokenizer(backend, config.end_id)
    except KeyError as error:
        raise BaseError(f"tokenizer.json: no byte-level BPE, a token holds {error}") from error
    fingerprint = _fingerprint(config, weights, tokenizer)
    placed = _moved(weights, device, mapped=mapping is not None)
    return Base(name, config, placed, tokenizer, fingerprint, device, mapping)


def _device_of(device: str | None) -> torch.device:
    there = torch.cuda.is_available()
    try:
        target = torch.device(device or ("cuda" if there else "cpu"))
    except RuntimeError:
        raise BaseError(f"PREFIX_DEVICE: torch knows no device {device!r}; cpu and cuda are served") from None
    if target.type == "cuda" and not there:
        raise BaseError(
            f"PREFIX_DEVICE is {device}, and torch finds no CUDA device; set it to cpu, or not at all"
        )
    return target


def _config_of(told: Named[str, Any]) -> tuple[BaseConfig, int]:
    """The shape, and the width inside the MLP."""
    wrong = [
        (told["model_type"] != "gpt2", "model_type must be gpt2"),
        (told["activation_function"] != "gelu_new", "activation_function must be gelu_new"),
        (not told["scale_attn_weights"], "scale_attn_weights must be true"),
        (told["scale_attn_by_inverse_layer_idx"], "scale_attn_by_inverse_layer_idx must be false"),
        (told["add_cross_attention"], "add_cross_attention must be false"),
        (not told["tie_word_embeddings"], "tie_word_embeddings must be true"),
        (type(told["eos_token_id"]) is not int, "eos_token_id must be set, to one token"),
        *(
            (type(told[name]) is not int or told[name] < 1, f"{name} must be a positive integer")
            for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size")
        ),
        (type(told["n_inner"] or 1) is not int, "n_inner must be an integer, or null"),
        (not _is_small(told["layer_norm_epsilon"]), "layer_norm_epsilon must be a number between 0 and 1"),
    ]
    for bad, why in wrong:
        if bad:
            raise BaseError(f"config.json: {why}")
    if not 0 <= told["eos_token_id"] < told["vocab_size"]:
        raise BaseError(
            f"config.json: eos_token_id ({told['eos_token_id']}) must be less than vocab_size ({told['vocab_size']}), and not negative"
        )
    heads, width = told["n_head"], told["n_embd"]
    if width % heads:
        raise BaseError(f"config.json: n_embd ({width}) must be a multiple of n_head ({heads})")
    config = BaseConfig(
        layers=told["n_layer"],
        heads=heads,
        head_dim=width // heads,
        width=width,
        positions=told["n_positions"],
        vocab=told["vocab_size"],
        end_id=told["eos_token_id"],
        layer_norm_eps=told["layer_norm_epsilon"],
    )
    return config, told["n_inner"] or 4 * width


def _is_small(value: object) -> bool:
    return type(value) is float and 0 < value < 1


def _weights_of(config: BaseConfig, inner: int, found: Named[str, Tensor]) -> Weights:
    def weight(name: str, *shape: int) -> Tensor:
        tensor = found.get(name)
        if tensor is None:
            raise BaseError(f"model.safetensors: no weight is named {name}")
        if tuple(tensor.shape) != shape:
            raise BaseError(
                f"model.safetensors: {name} must be {list(shape)} by config.json, it is {list(tensor.shape)}"
            )
        return tensor

    width = config.width
    layers = tuple(
        LayerWeights(
            ln_1_weight=weight(f"{of}.ln_1.weight", width),
            ln_1_bias=weight(f"{of}.ln_1.bias", width),
            qkv_weight=weight(f"{of}.attn.c_attn.weight", width, 3 * width),
            qkv_bias=weight(f"{of}.attn.c_attn.bias", 3 * width),
            attention_out_weight=weight(f"{of}.attn.c_proj.weight", width, width),
            attention_out_bias=weight(f"{of}.attn.c_proj.bias", width),
            ln_2_weight=weight(f"{of}.ln_2.weight", width),
            ln_2_bias=weight(f"{of}.ln_2.bias", width),
            mlp_in_weight=weight(f"{of}.mlp.c_fc.weight", width, inner),
            mlp_in_bias=weight(f"{of}.mlp.c_fc.bias", inner),
            mlp_out_weight=weight(f"{of}.mlp.c_proj.weight", inner, width),
            mlp_out_bias=weight(f"{of}.mlp.c_proj.bias", width),
        )
        for of in (f"h.{i}" for i in range(config.layers))
    )
    return Weights(
        weight("wte.weight", config.vocab, width),
        weight("wpe.weight", config.positions, width),
        layers,
        weight("ln_f.weight", width),
        weight("ln_f.bias", width),
    )


def _moved(weights: Weights, device: torch.device, *, mapped: bool) -> Weights:
    """In float32, on the device. What lies in a mapping of ours stays there. Else only the blocks' matrices may stay views of a
    file, as transformers and safetensors map it into memory: whoever packs and drops them keeps the rest, and one
    small view would keep the whole file resident.
    """

    def move(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, torch.float32).contiguous()

    def own(tensor: Tensor) -> Tensor:
        return tensor.detach().to(device, torch.float32, copy=not mapped).contiguous()

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
