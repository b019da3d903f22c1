"""One step on the device: pack the plan's tokens, run the base over them, choose the next tokens.

Knows no queues, texts or sinks; what it returns is plain Python.
"""

from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from prefix_engine.batch_sampling import BatchSampler
from prefix_engine.gpt2 import Network
from prefix_engine.graphs import GraphedDecode
from prefix_engine.kernels import Kernels, decode_for
from prefix_engine.kv import PagedMemory
from prefix_engine.sampling import Pick, RowSampler, Sampler, Score, scores_of
from prefix_engine.scheduler import Chunk, Plan
from prefix_engine.sequence import Sequence

_SCORED_AT_ONCE = 64  # prompt positions whose logits lie in memory together


@dataclass(frozen=True, slots=True)
class Picked:
    """The next token of a row."""

    sequence: Sequence
    pick: Pick


@dataclass(frozen=True, slots=True)
class Scored:
    """Scores of the prompt tokens `chunk.start + 1 .. chunk.stop`; None if one was not finite or scoring raised `error`."""

    sequence: Sequence
    scores: tuple[Score, ...] | None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class StepResult:
    """What one step found out."""

    picked: tuple[Picked, ...]
    scored: tuple[Scored, ...]


class Runner:
    """The base ready to compute with, what computes, the memory and a sampler.

    `decode`, if there is one, computes the steps in which no prompt has a part.
    """

    def __init__(
        self,
        network: Network,
        kernels: Kernels,
        memory: PagedMemory,
        sampler: Sampler,
        decode: GraphedDecode | None = None,
    ) -> None:
        self._network = network
        self._kernels = kernels
        self._forward = kernels.forward(network)
        self._memory = memory
        self._sampler = sampler
        self._decode = decode

    def forget(self, sequence: Sequence) -> None:
        """Drop what is kept for a row that ended."""
        self._sampler.forget(sequence)

    def wipe(self) -> None:
        """Zero what a step leaves in memory that the next one uses again."""
        self._forward.wipe()

    def step(self, plan: Plan) -> StepResult:
        """Compute one step; the plan's keys and values are in memory afterwards."""
        if self._decode is not None and not plan.chunks:
            picks = self._sampler.pick(self._decode(plan.decode), list(plan.decode))
            return StepResult(tuple(map(Picked, plan.decode, picks)), ())
        attend = self._kernels.attention(self._memory, plan)
        tokens = [s.token(s.computed) for s in attend.order]
        places = [s.position_offset + s.computed for s in attend.order]
        for chunk in plan.chunks:
            tokens += chunk.sequence.request.prompt[chunk.start : chunk.stop]
            offset = chunk.sequence.position_offset
            places += range(offset + chunk.start, offset + chunk.stop)
        device = self._network.device
        packed = torch.tensor([tokens, places], device=device)
        rows, where, scored = _wanted(plan, attend.order)
        wanted = None  # in a step that only decodes, every token is
        if plan.chunks:
            asked = chain(where, *(of_chunk for _, of_chunk in scored))
            wanted = torch.tensor(list(asked), dtype=torch.long, device=device)
        hidden = self._forward(packed[0], packed[1], attend, wanted)
        return StepResult(self._pick(hidden[: len(rows)], rows), self._score(hidden[len(rows) :], scored))

    def _pick(self, hidden: Tensor, rows: list[Sequence]) -> tuple[Picked, ...]:
        if not rows:
            return ()
        return tuple(map(Picked, rows, self._sampler.pick(self._network.head(hidden), rows)))

    def _score(self, hidden: Tensor, scored: list[tuple[Chunk, range]]) -> tuple[Scored, ...]:
        """Hidden states of the chunks' tokens, one chunk behind the other."""
        found, at = [], 0
        for chunk, places in scored:
            request = chunk.sequence.request
            targets = request.prompt[chunk.start + 1 : chunk.start + 1 + len(places)]
            try:
                scores = self._scores(hidden[at : at + len(places)], targets, request.logprobs or 0)
                found.append(Scored(chunk.sequence, scores))
            except Exception as error:  # noqa: BLE001 - told beside its row: the others go on
                found.append(Scored(chunk.sequence, None, error))
            at += len(places)
        return tuple(found)

    def _scores(self, hidden: Tensor, targets: tuple[int, ...], top: int) -> tuple[Score, ...] | None:
        scores: list[Score] = []
        for at in range(0, len(targets), _SCORED_AT_ONCE):
            logits = self._network.head(hidden[at : at + _SCORED_AT_ONCE])
            if not bool(torch.isfinite(logits).all()):
                return None
            logprobs = torch.log_softmax(logits, 1)
            scores += scores_of(logprobs, targets[at : at + _SCORED_AT_ONCE], top)
        return tuple(scores)


def runner_for(
    network: Network, kernels: Kernels, memory: PagedMemory, rows: int, sampler: Sampler | None
) -> Runner:
    """A runner with what these kernels decode and choose by, for steps of at most `rows` rows.

    Without a sampler of the caller's, tokens are chosen row by row on a CPU, where looking at one costs
    nothing, and over the batch on any other device.
    """
    if sampler is None:
        sampler = RowSampler(kernels.best, kernels.draws) if network.device.type == "cpu" else BatchSampler()
    return Runner(network, kernels, memory, sampler, decode_for(kernels, network, memory, rows))


def _wanted(
    plan: Plan, order: tuple[Sequence, ...]
) -> tuple[list[Sequence], list[int], list[tuple[Chunk, range]]]:
    """What hidden states a step is for.

    Returns:
        Rows that get a token, the decoding ones in their order; for each the place among the packed tokens
        behind which it stands; and chunks whose tokens are scored, each with the places that tell the next.
    """
    rows, where = list(order), list(range(len(order)))
    scored, at = [], len(order)
    for chunk in plan.chunks:
        request, size = chunk.sequence.request, chunk.stop - chunk.start
        if chunk.ends_prompt and request.max_tokens:
            rows.append(chunk.sequence)
            where.append(at + size - 1)
        if request.echo and request.logprobs is not None:
            scored.append((chunk, range(at, at + size - chunk.ends_prompt)))
        at += size
    return rows, where, scored
