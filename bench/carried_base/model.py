"""The model that is trained: transformers' GPT-2 with torch's attention, its loss, its gradients, its optimisers."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from bench.carried_base.batches import Batch
from bench.carried_base.muon import Muon
from bench.carried_base.recipe import Recipe
from bench.carried_base.tokens import END_ID

PIECE = 2048  # tokens whose logits are held at once


def load(place: Path) -> Any:
    """The GPT-2 of a folder, in float32."""
    disable_progress_bar()
    return _ready(
        GPT2LMHeadModel.from_pretrained(
            str(place), use_safetensors=True, dtype=torch.float32, attn_implementation="sdpa"
        )
    )


def fresh(recipe: Recipe) -> Any:
    """A GPT-2 of the recipe's shape with GPT-2's random start, decided by its seed."""
    config = GPT2Config(
        vocab_size=recipe.vocab,
        n_positions=recipe.block,
        n_embd=recipe.width,
        n_layer=recipe.layers,
        n_head=recipe.heads,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        attn_implementation="sdpa",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        return _ready(GPT2LMHeadModel(config))


def losses(model: Any, ids: Tensor, targets: Tensor) -> Tensor:
    """Loss of each target in nats, `[rows, length]`; positions from 0."""
    with torch.no_grad():
        states = model.transformer(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
        found = [
            functional.cross_entropy(
                functional.linear(some, model.transformer.wte.weight), wanted, reduction="none"
            )
            for some, wanted in zip(states.split(PIECE), targets.flatten().split(PIECE), strict=True)
        ]
    return torch.cat(found).view_as(targets)


def add_gradients(model: Any, batch: Batch, parts: int = 1) -> float:
    """Add the gradients of the mean loss of a batch; the loss in nats a token.

    The logits of all tokens would be the largest tensor by far, so they are made, and gone back through,
    piece by piece; what the pieces say of the last states goes back through the blocks once.
    """
    total = 0.0
    for ids, targets in zip(batch.ids.chunk(parts), batch.targets.chunk(parts), strict=True):
        positions = torch.arange(batch.first, batch.first + ids.shape[1]).unsqueeze(0)
        states = model.transformer(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
        states = states.flatten(0, 1)
        cut = states.detach().requires_grad_()
        for some, wanted in zip(cut.split(PIECE), targets.flatten().split(PIECE), strict=True):
            logits = functional.linear(some, model.transformer.wte.weight)
            loss = functional.cross_entropy(logits, wanted, reduction="sum") / batch.targets.numel()
            loss.backward()
            total += loss.item()
        states.backward(cut.grad)
    return total


def optimisers(model: Any, recipe: Recipe) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings, biases and norms."""
    matrices, rest = [], []
    for name, weight in model.named_parameters():
        (matrices if ".h." in name and weight.dim() == 2 else rest).append(weight)
    return {
        "matrices": Muon(
            matrices,
            lr=recipe.matrices_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.matrices_decay,
            adjust_lr_fn="match_rms_adamw",  # the same for [in, out] as for [out, in]
        ),
        "rest": torch.optim.AdamW(rest, lr=recipe.rest_rate, betas=recipe.betas, weight_decay=0.0),
    }


def _ready(model: Any) -> Any:
    """In training mode, with the same activation as one operation instead of eight."""
    for block in model.transformer.h:
        block.mlp.act = nn.GELU(approximate="tanh")
    return model.train()
