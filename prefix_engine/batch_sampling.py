"""The choice of next tokens over the whole batch where its logits lie, and one transfer of what was found.

`sampling.RowSampler` goes row by row; on a GPU that would be several waits for the device a row. Here a
step is one, whatever its rows ask for. The choices are the same but for rounding, and each row's depends on
its own logits and generator alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_engine.cuda import sent
from prefix_engine.sampling import Pick, RowSampler, Score, Wish, adjust
from prefix_engine.sequence import Sequence

_DRAWN_AT_ONCE = 64  # rows whose sorted vocabularies lie in memory together


@dataclass(slots=True)
class BatchSampler(RowSampler):
    """See `sampling.Sampler`. What rows wish is read and adjusted one by one, the rest is done for all together."""

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """See `Sampler`. Scores are of the raw logits, before penalties, bias and temperature."""
        finite = logits.sum(dim=1).isfinite()
        asked = [i for i, s in enumerate(sequences) if s.request.logprobs is not None]
        raw = torch.log_softmax(logits[_numbers(asked, logits.device)], 1) if asked else None
        wishes: dict[int, Wish] = {}
        errors: dict[int, Exception] = {}
        for i, sequence in enumerate(sequences):
            try:
                if sequence.request.sampling.adjusts:
                    adjust(logits[i], sequence)
                if sequence.request.sampling.temperature > 0:
                    wishes[i] = self._wish(sequence, logits.shape[1])
            except Exception as error:  # noqa: BLE001 - told in the pick: the other rows go on
                errors[i] = error
        tokens = logits.argmax(dim=1)
        drawing = list(wishes)
        for at in range(0, len(drawing), _DRAWN_AT_ONCE):
            some = drawing[at : at + _DRAWN_AT_ONCE]
            where = _numbers(some, logits.device)
            tokens[where] = _draw(logits[where], [wishes[i] for i in some])
        most = max((sequences[i].request.logprobs or 0 for i in asked), default=0)
        scored = [] if raw is None else _scores(raw, tokens[_numbers(asked, logits.device)], most)
        # Everything as one list of float64, which holds float32 and every token id exactly.
        parts = [finite, tokens, *scored]
        told = torch.cat([part.double().flatten() for part in parts]).tolist()
        picks = _picks(told, sequences, asked, min(most, logits.shape[1]))
        return [Pick(None, error=errors[i]) if i in errors else pick for i, pick in enumerate(picks)]


def _draw(logits: Tensor, wishes: list[Wish]) -> Tensor:
    """Draw a token of each row of `[n, vocab]` as `sampling.draw` does; `wishes` of each row."""
    uploaded = sent(torch.tensor(wishes, dtype=torch.float64).T.contiguous(), logits.device)
    temperature, top_k, top_p, point = uploaded.unsqueeze(2).unbind(0)
    scaled = (logits - logits.amax(1, keepdim=True)).double() / temperature
    ids = None
    if any(wish.top_k or wish.top_p < 1 for wish in wishes):
        scaled, ids = _kept(scaled, top_k, top_p)
    edges = torch.softmax(scaled, 1).cumsum(1)
    last = edges[:, -1:]
    # The product may round up to the last edge, behind which only tokens of probability 0 lie.
    point = torch.minimum(point * last, torch.nextafter(last, torch.zeros_like(last)))
    # A row that is not finite finds no place; it fails later, and must not reach beyond the vocabulary.
    place = torch.searchsorted(edges, point, right=True).clamp_(max=logits.shape[1] - 1)
    return (place if ids is None else ids.gather(1, place)).squeeze(1)


def _kept(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> tuple[Tensor, Tensor]:
    """Logits `[n, vocab]`, -inf where top_k and top_p leave nothing, and their ids.

    Best first in rows that either cuts; by id in the others, as `sampling.draw` takes them.
    """
    rank = torch.arange(scaled.shape[1], device=scaled.device)
    best, ids = scaled.sort(stable=True, dim=1, descending=True)
    best = best.masked_fill((top_k > 0) & (rank >= top_k), -torch.inf)
    share = torch.softmax(best, 1)
    best = best.masked_fill(share.cumsum(1) - share >= top_p, -torch.inf)
    cut = (top_k > 0) | top_p.isfinite()
    return torch.where(cut, best, scaled), torch.where(cut, ids, rank)


def _scores(raw: Tensor, tokens: Tensor, most: int) -> list[Tensor]:
    values, ids = raw.topk(min(most, raw.shape[1]), 1)
    return [raw.gather(1, tokens.unsqueeze(1)), values, ids]


def _picks(told: list[float], sequences: list[Sequence], asked: list[int], most: int) -> list[Pick]:
    """Read what `BatchSampler.pick` put together; `most` best tokens of each row that asked for scores."""
    rows = len(sequences)
    at = 2 * rows + len(asked)
    values, ids = told[at:], told[at + most * len(asked) :]
    scores: dict[int, Score] = {}
    for n, i in enumerate(asked):
        count = sequences[i].request.logprobs or 0
        own = slice(n * most, n * most + min(count, most))
        top = zip(map(int, ids[own]), values[own], strict=True)
        scores[i] = Score(told[2 * rows + n], tuple(top))
    return [Pick(int(told[rows + i]), scores.get(i)) if told[i] else Pick(None) for i in range(rows)]


def _numbers(numbers: list[int], device: torch.device) -> Tensor:
    return sent(torch.tensor(numbers), device)
