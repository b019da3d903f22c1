"""The choice of the next token, row by row: a row's choice depends on its own logits and generator alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from prefix_engine import nucleus
from prefix_engine.request import Sampling
from prefix_engine.sequence import Sequence

_HEAD = 256  # best tokens that are sorted; where they are too few, see `nucleus`


@dataclass(frozen=True, slots=True)
class Score:
    """Log probability of one token under the raw logits, and the best tokens beside it, best first."""

    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Pick:
    """The next token of a row; None if its logits were not finite, or choosing raised `error`.

    `score` if it was asked for.
    """

    token: int | None
    score: Score | None = None
    error: Exception | None = None


class Sampler(Protocol):
    """Chooses tokens for the rows of one step."""

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """Logits `[n, vocab]`, which may be overwritten, to one pick for each of n sequences.

        What goes wrong with one row alone is told in its pick; what is raised ends the engine.
        """

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a row that ended."""


# Logits [n, vocab] -> for each row the first of its largest, and whether all of them are finite.
Best = Callable[[Tensor], list[tuple[int, bool]]]


def best_of(logits: Tensor) -> list[tuple[int, bool]]:
    """See `Best`."""
    finite = logits.sum(dim=1).isfinite().tolist()  # far cheaper than a look at each
    return list(zip(logits.argmax(dim=1).tolist(), finite, strict=True))


@dataclass(slots=True)
class RowSampler:
    """Greedy rows are taken together; each other row draws once a token from its own generator."""

    best: Best = best_of
    _generators: dict[int, torch.Generator] = field(default_factory=dict)

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """See `Sampler`. Scores are of the raw logits, before penalties, bias and temperature."""
        best = self.best(logits)
        picks = []
        for i, sequence in enumerate(sequences):
            try:
                picks.append(self._pick(logits[i], sequence, *best[i]))
            except Exception as error:  # noqa: BLE001 - told in the pick: the other rows go on
                picks.append(Pick(None, error=error))
        return picks

    def _pick(self, logits: Tensor, sequence: Sequence, token: int, finite: bool) -> Pick:
        """One row's pick; `token` is the best of its raw logits."""
        if not finite:
            return Pick(None)
        sampling, count = sequence.request.sampling, sequence.request.logprobs
        raw = None if count is None else torch.log_softmax(logits, 0)
        if sampling.adjusts:
            adjust(logits, sequence)
        if sampling.temperature > 0:
            token = draw(logits, sampling, self._generator(sequence))
        elif sampling.adjusts:
            token = int(logits.argmax())
        return Pick(token, None if raw is None or count is None else score_of(raw, token, count))

    def forget(self, sequence: Sequence) -> None:
        """See `Sampler`."""
        self._generators.pop(sequence.number, None)

    def _generator(self, sequence: Sequence) -> torch.Generator:
        generator = self._generators.get(sequence.number)
        if generator is None:
            # Always the CPU's: the same seed gives the same draws on every device.
            generator = torch.Generator().manual_seed(sequence.seed)
            self._generators[sequence.number] = generator
        return generator


def adjust(logits: Tensor, sequence: Sequence) -> None:
    """Apply penalties, bias and min_tokens to the logits `[vocab]` of one row, in place."""
    sampling = sequence.request.sampling
    counts = Counter(sequence.generated)
    if counts and (sampling.presence_penalty or sampling.frequency_penalty):
        taken = {t: -sampling.presence_penalty - n * sampling.frequency_penalty for t, n in counts.items()}
        _add(logits, taken.keys(), taken.values())
    if sampling.logit_bias:
        _add(logits, sampling.logit_bias.keys(), sampling.logit_bias.values())
    end_id = sequence.request.end_id
    if end_id is not None and len(sequence.generated) < sampling.min_tokens:
        logits[end_id] = -torch.inf


def draw(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """Draw one token from logits `[vocab]` by temperature, top_k, top_p; takes one number of `generator`.

    The cumulative sum is inverted in float64, so a difference of one rounding in the logits, which a
    batch of another size may cause, moves the choice with a probability of that size only.
    """
    # In float64 no positive temperature rounds to 0, and the best token stays at 0 / temperature = 0.
    scaled = (logits - logits.max()).double() / float(sampling.temperature)
    point = float(torch.rand((), generator=generator, dtype=torch.float64))
    vocab = len(scaled)
    top_k = min(sampling.top_k or vocab, vocab)
    ids: Tensor | None = None
    if not sampling.top_k and sampling.top_p >= 1:
        edges = torch.softmax(scaled, 0).cumsum(0)
    elif top_k <= _HEAD:
        values, ids = scaled.topk(top_k)
        edges = _left(torch.softmax(values, 0), sampling.top_p).cumsum(0)
    else:
        shares, ids = torch.softmax(scaled, 0), scaled.topk(_HEAD).indices
        few = _left(shares[ids], sampling.top_p)
        if top_k < vocab or len(few) == _HEAD:
            return nucleus.drawn(scaled, shares, top_k, sampling.top_p, point)
        edges = few.cumsum(0)
    # The product may round up to the last edge, behind which only tokens of probability 0 lie.
    at = min(point * float(edges[-1]), math.nextafter(float(edges[-1]), 0.0))
    place = int(torch.searchsorted(edges, at, right=True))
    return place if ids is None else int(ids[place])


def score_of(logprobs: Tensor, token: int, top: int) -> Score:
    """Read one token's score out of log probabilities `[vocab]`."""
    values, ids = logprobs.topk(min(top, len(logprobs)))
    return Score(float(logprobs[token]), tuple(zip(ids.tolist(), values.tolist(), strict=True)))


def _left(shares: Tensor, top_p: float) -> Tensor:
    """Of shares, best first, those that top_p leaves."""
    return shares[: int((shares.cumsum(0) - shares < top_p).sum())] if top_p < 1 else shares


def _add(logits: Tensor, ids: Iterable[int], amounts: Iterable[float]) -> None:
    where = torch.tensor(list(ids), device=logits.device)
    logits.index_add_(0, where, torch.tensor(list(amounts), device=logits.device, dtype=logits.dtype))
