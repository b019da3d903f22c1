"""How every method reads: first the prompt into keys and values, then the answer behind them.

Training and decoding take this one path, so they cannot differ. The prompt's last token (the separator) is read
with the answer: it is what predicts the answer's first token. Prompts are padded on the left, answers on the
right; masks hide the pads, and positions are given, so what is in a batch does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache, GPT2LMHeadModel

from trainer_worker.rows import Encoded

IGNORED = -100


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """What stands before the answer.

    Attributes:
        layers: keys and values of each layer, `[rows, heads, slots, head_dim]` each.
        mask: `[rows, slots]`, 1 where a slot may be seen.
        place: `[rows]`, the position of the next token.
    """

    layers: list[tuple[Tensor, Tensor]]
    mask: Tensor
    place: Tensor

    def cache(self, model: GPT2LMHeadModel) -> DynamicCache:
        """As transformers wants it; a new one each time, since models write into it."""
        return filled(model, self.layers)

    def then(self, tensor: Tensor) -> "Context":
        """The same with keys and values `[layers, 2, heads, m, head_dim]` behind it, which take m positions."""
        rows, m = len(self.place), tensor.shape[3]
        more = spread(tensor, rows)
        layers = [
            (torch.cat([keys, key], 2), torch.cat([values, value], 2))
            for (keys, values), (key, value) in zip(self.layers, more, strict=True)
        ]
        mask = torch.cat([self.mask, self.mask.new_ones(rows, m)], 1)
        return Context(layers, mask, self.place + m)


def filled(model: GPT2LMHeadModel, layers: Sequence[tuple[Tensor, Tensor]]) -> DynamicCache:
    """A cache that holds these keys and values."""
    cache = DynamicCache(config=model.config)
    for place, (keys, values) in enumerate(layers):
        cache.update(keys, values, place)
    return cache


def spread(tensor: Tensor, rows: int) -> list[tuple[Tensor, Tensor]]:
    """Keys and values `[layers, 2, heads, m, head_dim]` for each row of a batch."""
    return [(layer[0].expand(rows, -1, -1, -1), layer[1].expand(rows, -1, -1, -1)) for layer in tensor]


def read(
    model: GPT2LMHeadModel,
    prompts: Sequence[Sequence[int]],
    *,
    prefix: Tensor | None = None,
    soft: Tensor | None = None,
    offset: int = 0,
) -> Context:
    """Read prompts.

    Args:
        model: that reads.
        prompts: token ids, of any lengths, 0 too.
        prefix: `[layers, 2, heads, m, head_dim]` that every row sees; takes no position by itself.
        soft: `[k, width]` embeddings that stand before every prompt, at positions 0..k-1.
        offset: position of the prompt's first token; not beside `soft`.
    """
    device, rows = model.device, len(prompts)
    ids, mask = padded(prompts, device, left=True)
    layers = [] if prefix is None else spread(prefix, rows)
    embeds = model.transformer.wte(ids)
    places = offset + (mask.cumsum(1) - 1).clamp(min=0)
    seen = mask if prefix is None else torch.cat([mask.new_ones(rows, prefix.shape[3]), mask], 1)
    place = offset + mask.sum(1)
    if soft is not None:
        k = len(soft)
        embeds = torch.cat([soft.expand(rows, -1, -1), embeds], 1)
        places = torch.cat([torch.arange(k, device=device).expand(rows, -1), places + k], 1)
        seen, place = torch.cat([mask.new_ones(rows, k), seen], 1), place + k
    if embeds.shape[1]:
        cache = filled(model, layers)
        model.transformer(
            inputs_embeds=embeds,
            attention_mask=seen,
            position_ids=places,
            past_key_values=cache,
            use_cache=True,
        )
        layers = [(layer.keys, layer.values) for layer in cache.layers]
    return Context(layers, seen, place)


def answer(model: GPT2LMHeadModel, context: Context, ids: Tensor, mask: Tensor) -> Tensor:
    """Logits `[rows, tokens, vocab]` of tokens `[rows, tokens]`, padded on the right, behind a context."""
    places = context.place[:, None] + torch.arange(ids.shape[1], device=ids.device)
    logits: Tensor = model(
        input_ids=ids,
        attention_mask=torch.cat([context.mask, mask], 1),
        position_ids=places.clamp(max=model.config.n_positions - 1),  # only pads can lie beyond
        past_key_values=context.cache(model),
        use_cache=True,
    ).logits
    return logits


def loss(model: GPT2LMHeadModel, context: Context, rows: Sequence[Encoded]) -> tuple[Tensor, int]:
    """Sum of -log p over the answers' tokens and end tokens, in nats, and how many these are."""
    tails = [row.tokens[row.loss_from - 1 :] for row in rows]
    ids, mask = padded([tail[:-1] for tail in tails], model.device, left=False)
    wanted, _ = padded([tail[1:] for tail in tails], model.device, left=False)
    wanted = wanted.masked_fill(mask == 0, IGNORED)
    logits = answer(model, context, ids, mask)
    total = cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=IGNORED, reduction="sum")
    return total, sum(row.carrying for row in rows)


def heads(rows: Sequence[Encoded]) -> list[tuple[int, ...]]:
    """Each row's prompt without its last token."""
    return [row.tokens[: row.loss_from - 1] for row in rows]


def padded(rows: Sequence[Sequence[int]], device: torch.device, *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask `[rows, longest]`; pads are id 0, mask 0."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        if row:
            where = slice(longest - len(row), None) if left else slice(0, len(row))
            ids[place, where] = torch.tensor(row)
            mask[place, where] = 1
    return ids.to(device), mask.to(device)
