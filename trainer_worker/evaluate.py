"""Held-out loss: the sum of -log p over completion and end tokens of all rows, over their number, in nats."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_engine.base import Base
from prefix_engine.packed import token_losses
from trainer_worker.pieces import Pieces, cut
from trainer_worker.rows import Encoded

_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Score:
    """Loss in nats a token, share of tokens that were the likeliest, tokens scored."""

    loss: float
    accuracy: float
    tokens: int


def score(base: Base, rows: Sequence[Encoded], prefix: Tensor | None, position_offset: int) -> Pieces[Score]:
    """Score rows behind one prefix, or by the base alone; pauses before every batch."""
    total, correct, tokens = 0.0, 0, 0
    prefixes = [] if prefix is None else [prefix]
    for batch in _batches(rows, 0 if prefix is None else prefix.shape[3]):
        yield
        texts = [row.behind(None if prefix is None else 0, position_offset) for row in batch]
        with torch.no_grad():  # not around the pause: others compute gradients meanwhile
            found = token_losses(base, texts, prefixes)
        total += float(found.losses.double().sum())
        correct += int(found.correct.sum())
        tokens += len(found.losses)
    return Score(total / tokens, correct / tokens, tokens)


def _batches(rows: Sequence[Encoded], m: int) -> list[list[Encoded]]:
    """Rows, shortest first, in batches of about as many positions, each row's `m` of the prefix among them."""
    shortest_first = sorted(rows, key=lambda row: len(row.tokens))
    return list(cut(shortest_first, lambda row: m + len(row.tokens), _BATCH_TOKENS))
