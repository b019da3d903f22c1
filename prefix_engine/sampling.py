"""The choice of the next token on a CPU: a row's choice depends on its own logits and generator alone."""

import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

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


class Wish(NamedTuple):
    """What one draw hangs on: a number from 0 to below 1, and what is left to draw from."""

    temperature: float
    top_k: int  # 0: all
    top_p: float  # infinite: all
    point: float


# Logits [n, vocab] and, by row, how to draw -> by row the token, or what went wrong with that row alone.
Draws = Callable[[Tensor, dict[int, Wish]], dict[int, int | Exception]]


def draw_each(logits: Tensor, wishes: dict[int, Wish]) -> dict[int, int | Exception]:
    """See `Draws`."""
    found: dict[int, int | Exception] = {}
    for row, wish in wishes.items():
        try:
            found[row] = draw(logits[row], wish)
        except Exception as error:  # noqa: BLE001 - of one row: the others go on
            found[row] = error
    return found


@dataclass(slots=True)
class RowSampler:
    """Greedy rows are taken together, and those that draw, each by one number a token of its own generator."""

    best: Best = best_of
    draws: Draws = draw_each
    _generators: dict[int, torch.Generator] = field(default_factory=dict)

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """See `Sampler`. Scores are of the raw logits, before penalties, bias and temperature."""
        tokens: dict[int, int | Exception] = {}
        wishes: dict[int, Wish] = {}
        raw: dict[int, Tensor] = {}
        for i, (token, finite) in enumerate(self.best(logits)):
            if not finite:
                continue
            sampling = sequences[i].request.sampling
            try:
                tokens[i] = token
                if sequences[i].request.logprobs is not None:
                    raw[i] = torch.log_softmax(logits[i], 0)
                if sampling.adjusts:
                    adjust(logits[i], sequences[i])
                if sampling.temperature > 0:
                    wishes[i] = self._wish(sequences[i], logits.shape[1])
                elif sampling.adjusts:
                    tokens[i] = int(logits[i].argmax())
            except Exception as error:  # noqa: BLE001 - told in the pick: the other rows go on
                tokens[i] = error
        if wishes:
            tokens |= self.draws(logits, wishes)
        return [_pick(tokens.get(i), raw.get(i), sequence) for i, sequence in enumerate(sequences)]

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

    def _wish(self, sequence: Sequence, vocab: int) -> Wish:
        return wish_of(sequence.request.sampling, self._generator(sequence), vocab)


def wish_of(sampling: Sampling, generator: torch.Generator, vocab: int) -> Wish:
    """One draw as it was asked for; takes one number of `generator`."""
    point = torch.rand((), generator=generator, dtype=torch.float64).item()
    top_p = float(sampling.top_p) if sampling.top_p < 1 else math.inf
    return Wish(float(sampling.temperature), min(sampling.top_k, vocab), top_p, point)


def _pick(token: int | Exception | None, raw: Tensor | None, sequence: Sequence) -> Pick:
    """What is told of one row: None had no finite logits, an exception stands for what it raised."""
    if isinstance(token, Exception):
        return Pick(None, error=token)
    count = sequence.request.logprobs
    if token is None or raw is None or count is None:
        return Pick(token)
    try:
        return Pick(token, score_of(raw, token, count))
    except Exception as error:  # noqa: BLE001 - told in the pick: the other rows go on
        return Pick(None, error=error)


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


def draw(logits: Tensor, wish: Wish) -> int:
    """Draw one token from logits `[vocab]` by temperature, top_k, top_p.

    The cumulative sum is inverted in float64, so a difference of one rounding in the logits, which a
    batch of another size may cause, moves the choice with a probability of that size only.
    """
    # In float64 no positive temperature rounds to 0, and the best token stays at 0 / temperature = 0.
    scaled = (logits - logits.max()).double() / wish.temperature
    vocab, point = len(scaled), wish.point
    top_k = wish.top_k or vocab
    ids: Tensor | None = None
    if not wish.top_k and wish.top_p >= 1:
        edges = torch.softmax(scaled, 0).cumsum(0)
    elif top_k <= _HEAD:
        values, ids = scaled.topk(top_k)
        edges = _left(torch.softmax(values, 0), wish.top_p).cumsum(0)
    else:
        shares, ids = torch.softmax(scaled, 0), scaled.topk(_HEAD).indices
        few = _left(shares[ids], wish.top_p)
        if top_k < vocab or len(few) == _HEAD:
            return nucleus.drawn(scaled, shares, top_k, wish.top_p, point)
        edges = few.cumsum(0)
    # The product may round up to the last edge, behind which only tokens of probability 0 lie.
    at = min(point * float(edges[-1]), math.nextafter(float(edges[-1]), 0.0))
    place = int(torch.searchsorted(edges, at, right=True))
    return place if ids is None else int(ids[place])


def score_of(logprobs: Tensor, token: int, top: int) -> Score:
    """Read one token's score out of log probabilities `[vocab]`."""
    return scores_of(logprobs[None], (token,), top)[0]


def scores_of(logprobs: Tensor, tokens: Iterable[int], top: int) -> list[Score]:
    """Read the scores of one token each out of log probabilities `[n, vocab]`."""
    values, ids = logprobs.topk(min(top, logprobs.shape[1]), 1)
    where = torch.tensor(list(tokens), device=logprobs.device)
    own = logprobs.gather(1, where[:, None]).squeeze(1)
    found = zip(own.tolist(), ids.tolist(), values.tolist(), strict=True)
    return [Score(score, tuple(zip(best, shares, strict=True))) for score, best, shares in found]


def _left(shares: Tensor, top_p: float) -> Tensor:
    """Of shares, best first, those that top_p leaves."""
    return shares[: int((shares.cumsum(0) - shares < top_p).sum())] if top_p < 1 else shares


def _add(logits: Tensor, ids: Iterable[int], amounts: Iterable[float]) -> None:
    where = torch.tensor(list(ids), device=logits.device)
    logits.index_add_(0, where, torch.tensor(list(amounts), device=logits.device, dtype=logits.dtype))
