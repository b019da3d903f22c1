"""Many texts in one forward pass, each behind its own trainable prefix: what training and evaluation run.

The texts lie end to end and shortest first, so linear layers see no padding at all; attention pads only
within groups of texts of like length. Keys and values of the prefixes are mixed in differentiably, and
logits exist only where a token carries loss. The arithmetic is `gpt2.hidden_states`, which also serves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from prefix_engine.base import Base
from prefix_engine.gpt2 import hidden_states, network_of

_LOSS_CHUNK = 128  # positions whose logits `[chunk, vocab]` exist at once


@dataclass(frozen=True, slots=True)
class Text:
    """One text to score.

    Attributes:
        tokens: ids, at least two; the last one is only a target.
        loss_from: index of the first token that carries loss, at least 1.
        prefix: index of its prefix in the list given to `token_losses`; None is the base alone.
        position_offset: where its first token sits.
    """

    tokens: tuple[int, ...]
    loss_from: int
    prefix: int | None = None
    position_offset: int = 0


@dataclass(frozen=True, slots=True)
class TokenLosses:
    """Of every token that carries loss, in packed order: `[k]` each.

    Attributes:
        losses: -log p in nats, differentiable.
        correct: whether it was the likeliest token.
        text: index of its text in the list given.
    """

    losses: Tensor
    correct: Tensor
    text: Tensor


def token_losses(base: Base, texts: Sequence[Text], prefixes: Sequence[Tensor] = ()) -> TokenLosses:
    """Score texts behind prefixes, each `[layers, 2, heads, m, head_dim]` with an m of its own."""
    lengths = [0 if text.prefix is None else prefixes[text.prefix].shape[3] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: (lengths[i], len(texts[i].tokens)))
    ordered = [texts[i] for i in order]
    at = [i for text in ordered for i in range(len(text.tokens) - 1)]
    tokens = torch.tensor([token for text in ordered for token in text.tokens[:-1]], device=base.device)
    offsets = [text.position_offset for text in ordered for _ in text.tokens[:-1]]
    positions = torch.tensor(at, device=base.device) + torch.tensor(offsets, device=base.device)
    attention = PackedAttention(
        base, [(text, lengths[i]) for i, text in zip(order, ordered, strict=True)], prefixes
    )
    hidden = hidden_states(network_of(base), tokens, positions, attention)
    return _scored(base, hidden, order, ordered)


def _scored(base: Base, hidden: Tensor, order: Sequence[int], ordered: Sequence[Text]) -> TokenLosses:
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    start = 0
    for index, text in zip(order, ordered, strict=True):
        stop = len(text.tokens) - 1
        places += range(start + text.loss_from - 1, start + stop)
        targets += text.tokens[text.loss_from :]
        owners += [index] * (len(text.tokens) - text.loss_from)
        start += stop
    where, target, owner = (torch.tensor(x, device=base.device) for x in (places, targets, owners))
    losses, correct = _CrossEntropy.apply(hidden[where], base.weights.tokens, target)  # type: ignore[no-untyped-call]
    return TokenLosses(losses, correct, owner)


@dataclass(frozen=True, slots=True)
class _Group:
    """Texts `start..stop` of the packed list, padded to the longest: `rows * longest` slots.

    `slots` says which packed token fills each slot and `back` which slot each packed token is; both None
    if all are of one length. A pad repeats its text's last token: it stands behind all the tokens that are
    read back, so none of them sees it. `prefix` are indexes into the stack of all prefixes with this m.
    """

    start: int
    stop: int
    rows: int
    m: int
    slots: Tensor | None
    back: Tensor | None
    prefix: Tensor | None
    mask: Tensor | None  # [longest, m + longest]; None is plain causal


class PackedAttention:
    """Call it with (layer, qkv `[n, 3, heads, head_dim]`); see `gpt2.Attend`.

    `texts` come with their m, in packed order: by m, then by length.
    """

    def __init__(self, base: Base, texts: Sequence[tuple[Text, int]], prefixes: Sequence[Tensor]) -> None:
        self._device = base.device
        by_m: dict[int, list[int]] = {}
        for index, prefix in enumerate(prefixes):
            by_m.setdefault(prefix.shape[3], []).append(index)
        self._places = {index: place for same in by_m.values() for place, index in enumerate(same)}
        self._stacks = {m: torch.stack([prefixes[i] for i in same], 2) for m, same in by_m.items()}
        self._groups = self._grouped(texts)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Mix: `[n, heads, head_dim]`."""
        query, key, value = qkv.unbind(1)
        mixed = [self._mixed(group, layer, query, key, value) for group in self._groups]
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)

    def _mixed(self, group: _Group, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        q, k, v = (_rows(group, tensor) for tensor in (query, key, value))
        if group.prefix is not None:
            stack = self._stacks[group.m][layer]  # [2, prefixes, heads, m, head_dim]
            one = stack.shape[1] == 1
            own = stack.expand(-1, group.rows, -1, -1, -1) if one else stack.index_select(1, group.prefix)
            k, v = torch.cat([own[0], k], 2), torch.cat([own[1], v], 2)
            q = q.contiguous()  # the backward pass keeps it: as a view it would keep all of qkv
        mixed = functional.scaled_dot_product_attention(
            q, k, v, attn_mask=group.mask, is_causal=group.mask is None
        )
        flat = mixed.transpose(1, 2).reshape(-1, *query.shape[1:])
        return flat if group.back is None else flat.index_select(0, group.back)

    def _grouped(self, texts: Sequence[tuple[Text, int]]) -> list[_Group]:
        groups: list[_Group] = []
        first = start = 0
        while first < len(texts):
            shortest, m = len(texts[first][0].tokens) - 1, texts[first][1]
            last = first
            while (
                last < len(texts)
                and texts[last][1] == m
                and len(texts[last][0].tokens) - 1 <= _limit(shortest)
            ):
                last += 1
            groups.append(self._group([text for text, _ in texts[first:last]], m, start))
            first, start = last, groups[-1].stop
        return groups

    def _group(self, texts: Sequence[Text], m: int, start: int) -> _Group:
        lengths = [len(text.tokens) - 1 for text in texts]
        longest, stop = lengths[-1], start + sum(lengths)
        slots = back = prefix = mask = None
        if lengths[0] != longest:
            filled: list[int] = []
            read: list[int] = []
            begin = start
            for row, length in enumerate(lengths):
                filled += [begin + min(i, length - 1) for i in range(longest)]
                read += range(row * longest, row * longest + length)
                begin += length
            slots, back = (torch.tensor(x, device=self._device) for x in (filled, read))
        if m:
            places = [self._places[text.prefix] for text in texts if text.prefix is not None]
            prefix = torch.tensor(places, device=self._device)
            mask = torch.ones(longest, m + longest, dtype=torch.bool, device=self._device).tril(m)
        return _Group(start, stop, len(texts), m, slots, back, prefix, mask)


def _limit(shortest: int) -> int:
    """Longest text that shares a group with this one: at most a fifth of the slots is padding."""
    return max(shortest + 4, shortest * 5 // 4)


def _rows(group: _Group, tensor: Tensor) -> Tensor:
    """`[rows, heads, longest, head_dim]` of a group out of `[n, heads, head_dim]`."""
    own = tensor[group.start : group.stop] if group.slots is None else tensor.index_select(0, group.slots)
    return own.view(group.rows, -1, *tensor.shape[1:]).transpose(1, 2)


class _CrossEntropy(torch.autograd.Function):
    """-log p of the targets, in chunks; the base is frozen, so the gradient is made on the way forward.

    Keeping it costs `[k, width]`, where the logits would cost `[k, vocab]`; one chunk's lie in memory at a time.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        losses, correct = hidden.new_empty(len(targets)), torch.empty_like(targets, dtype=torch.bool)
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        memory = hidden.new_empty(min(_LOSS_CHUNK, len(targets)), len(head))
        for start in range(0, len(targets), _LOSS_CHUNK):
            chunk = slice(start, start + _LOSS_CHUNK)
            target = targets[chunk]
            logits = torch.mm(hidden[chunk], head.T, out=memory[: len(target)])
            largest, likeliest = logits.max(1, keepdim=True)
            reached = logits.gather(1, target[:, None]) - largest
            total = logits.sub_(largest).exp_().sum(1, keepdim=True)
            losses[chunk] = (total.log() - reached)[:, 0]
            correct[chunk] = likeliest[:, 0] == target
            if gradient is not None:
                torch.mm(logits, head, out=gradient[chunk])
                gradient[chunk].div_(total).sub_(head[target])
        ctx.mark_non_differentiable(correct)
        if gradient is not None:
            ctx.save_for_backward(gradient)
        return losses, correct

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0][:, None], None, None
