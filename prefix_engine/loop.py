"""The step loop, one turn at a time, without a thread of its own: take in, expire, admit, run, deliver.

All methods belong to one thread; the engine sees to that.
"""

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial

import torch

from prefix_engine.base import Base
from prefix_engine.config import EngineConfig
from prefix_engine.gpt2 import network_of
from prefix_engine.kernels import kernels_for
from prefix_engine.kv import PagedMemory
from prefix_engine.pages import pages_for
from prefix_engine.pool import Loaded, Loader, PrefixPool
from prefix_engine.prompt_cache import PromptCache
from prefix_engine.request import Delta, Failed, Finished, FinishReason
from prefix_engine.row import Row, Sink
from prefix_engine.runner import Scored, StepResult, runner_for
from prefix_engine.sampling import Pick, Sampler, Score
from prefix_engine.scheduler import Plan, Readiness, Scheduler, seats_for
from prefix_engine.sequence import Sequence
from prefix_engine.text import TextStream, token_info

log = logging.getLogger(__name__)

_NON_FINITE = "the logits of this row are not finite"


class Loop:
    """Everything between a submitted request and its events."""

    def __init__(
        self,
        base: Base,
        config: EngineConfig,
        loader: Loader,
        deliver: Callable[[Loaded], None],
        sampler: Sampler | None = None,
    ) -> None:
        self._base = base.emptied()
        self._config = config
        kernels = kernels_for(config.kernels, base.device, config.weights, base.config.head_dim)
        self.kernels = kernels.name
        self.memory = PagedMemory(
            base.config,
            base.device,
            config.page,
            config.kv_bytes,
            config.pool_bytes,
            seats_for(config.rows),
            torch.bfloat16 if config.kv == "bf16" else torch.float32,
        )
        self._rows: dict[int, Row] = {}
        pages, zero = self.memory.row_pages, self.memory.zero
        self.cache = PromptCache(pages, config.page, zero, config.prompt_cache_s, self._callers)
        longest = pages_for(base.config.positions, config.page)
        self.scheduler = Scheduler(config.rows, config.step_tokens, config.chunk_tokens, self.cache, longest)
        self.pool = PrefixPool(self._base, self.memory, loader, config.load_threads, deliver)
        network = network_of(base, kernels.linear(config.weights), kernels.norm())
        base.release()
        self._runner = runner_for(network, kernels, self.memory, config.rows, sampler)
        self.steps = self.generated_tokens = self.prefill_tokens = self.decoded_rows = 0

    def add(self, sequence: Sequence, sink: Sink) -> None:
        """Take a request in."""
        request = sequence.request
        row = Row(sequence, sink, TextStream(self._base.tokenizer, request.stop))
        self._rows[sequence.number] = row
        self.scheduler.add(sequence)
        if request.prefix_id is not None and self.pool.is_revoked(request.prefix_id):
            self._fail(row, "revoked", "the prefix was revoked")
        elif request.positions > self._base.config.positions:
            self._fail(row, "context", self._too_long(0, sequence))
        elif not self.cache.fits(sequence):
            self._fail(row, "context", "the request needs more memory than there is for all rows")

    def settle(self, loaded: Loaded) -> None:
        """Take what a loader thread brought; an error fails the requests that wait for it."""
        error = self.pool.settle(loaded)
        self.scheduler.wake(loaded.prefix_id)
        for row in self._rows.values():
            if row.sequence.request.prefix_id == loaded.prefix_id:
                row.sequence.times.loaded = loaded.ended
                row.sequence.times.load_seconds = loaded.seconds
        if error is not None:
            self.fail_prefixes({loaded.prefix_id}, error.code, error.message)

    def fail_prefixes(self, prefix_ids: set[str], code: str, message: str) -> None:
        """End every request, running or waiting, that names one of these prefixes."""
        for row in list(self._rows.values()):
            if row.sequence.request.prefix_id in prefix_ids:
                self._fail(row, code, message)

    def revoke(self, prefix_ids: set[str]) -> None:
        """Refuse these prefixes for good and erase what there is of them, texts that stood behind them too."""
        self.pool.refuse(prefix_ids)
        self.fail_prefixes(prefix_ids, "revoked", "the prefix was revoked")
        self.cache.drop(prefix_ids)
        self.pool.erase(prefix_ids)
        self._wipe()

    def forget(self, ids: set[str]) -> None:
        """Erase the kept texts of requests that had one of these ids in `reuse`, and keep none any more."""
        self.cache.forget(ids)
        self._wipe()

    def abandon(self, code: str, message: str) -> None:
        """End every request and erase all prefixes and texts, whatever state a failed step left behind."""
        for row in list(self._rows.values()):
            try:
                self._fail(row, code, message)
            except Exception:
                log.exception("row.abandoned")
        try:
            self.cache.clear()
        finally:
            self.pool.erase_all()

    def next_deadline(self) -> float | None:
        """The earliest deadline of a request that has not ended."""
        deadlines = (row.sequence.request.deadline for row in self._rows.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def turn(self, now: float) -> bool:
        """Expire, admit, and run one step; whether there was one, or reason to turn again. `now` as of the deadlines."""
        more = self.cache.expire(now)
        self._expire(now)
        again = self._admit(now) or more
        plan = self.scheduler.plan()
        if not plan.tokens:
            return again
        with torch.inference_mode():
            result = self._runner.step(plan)
        self.scheduler.advance(plan)
        self.steps += 1
        self.decoded_rows += len(plan.decode)
        self.prefill_tokens += plan.tokens - len(plan.decode)
        self._deliver(plan, result)
        return True

    def _expire(self, now: float) -> None:
        for row in list(self._rows.values()):
            deadline = row.sequence.request.deadline
            if row.sequence.cancelled:
                self._fail(row, "cancelled", "the request was cancelled")
            elif deadline is not None and deadline <= now:
                self._fail(row, "deadline", "the request's deadline passed")

    def _admit(self, now: float) -> bool:
        """Seat who can be; whether somebody made room on the way whom the walk had still counted."""
        if not self.scheduler.waiting:
            return bool(self.pool.drop_held(()))
        wanted: dict[str, Readiness] = {}
        refused: list[tuple[Sequence, int]] = []

        def readiness(sequence: Sequence) -> Readiness:
            prefix_id = sequence.request.prefix_id
            if prefix_id is None:
                return Readiness.READY
            state = wanted[prefix_id] = self.pool.ensure(prefix_id, wanted)
            resident = self.pool.get(prefix_id)
            if resident is None:
                return state
            if resident.position_offset + sequence.request.positions > self._base.config.positions:
                refused.append((sequence, resident.position_offset))
                return Readiness.LOADING
            return state

        for sequence in self.scheduler.admit(readiness, look_ahead=2 * self._config.rows):
            self._seat(sequence)
            sequence.times.seated = now
        for sequence, offset in refused:
            self._fail(self._rows[sequence.number], "context", self._too_long(offset, sequence))
        dropped = self.pool.drop_held(self.scheduler.awaited)
        if Readiness.COLD in wanted.values():
            dropped += self.pool.give_way(wanted)
        return bool(dropped or refused)

    def _seat(self, sequence: Sequence) -> None:
        prefix_id = sequence.request.prefix_id
        if prefix_id is not None:
            resident = self.pool.pin(prefix_id)
            sequence.m, sequence.position_offset = resident.m, resident.position_offset
            sequence.prefix_pages = resident.pages

    def _unseat(self, sequence: Sequence) -> None:
        if sequence.prefix_pages and sequence.request.prefix_id is not None:
            sequence.prefix_pages = ()
            self.pool.unpin(sequence.request.prefix_id)

    def _deliver(self, plan: Plan, result: StepResult) -> None:
        """Give every row what the step computed for it, then raise the signal that fell into one, if any did."""
        acts: list[tuple[Sequence, Callable[[Row], None]]]
        acts = [(one.sequence, partial(self._take_scores, scored=one)) for one in result.scored]
        acts += [(chunk.sequence, self._end_prompt) for chunk in plan.chunks if chunk.ends_prompt]
        acts += [(one.sequence, partial(self._advance, pick=one.pick)) for one in result.picked]
        with ExitStack() as then:
            for sequence, act in reversed(acts):
                then.callback(self._guarded, sequence, act)

    def _guarded(self, sequence: Sequence, act: Callable[[Row], None]) -> None:
        """Act on a row that has not ended; an error is that row's alone."""
        row = self._rows.get(sequence.number)
        if row is None or sequence.cancelled:
            return
        try:
            act(row)
        except Exception as error:
            log.exception("row.failed error=%s", type(error).__name__)
            if sequence.number in self._rows:  # else it was told already
                self._fail(row, "internal", "the engine failed on this request")
        except BaseException:
            sequence.cancelled = True  # it may lack a piece
            raise

    def _take_scores(self, row: Row, scored: Scored) -> None:
        if scored.error is not None:
            raise scored.error
        if scored.scores is None:
            self._fail(row, "non_finite", _NON_FINITE)
        else:
            row.prompt_scores += scored.scores

    def _end_prompt(self, row: Row) -> None:
        request = row.sequence.request
        if request.echo:
            text = "".join(row.stream.prime(token) for token in request.prompt)
            scores: list[Score | None] = [None, *row.prompt_scores]
            scores += [None] * (len(request.prompt) - len(scores))
            tokens = tuple(map(partial(token_info, self._base.tokenizer), request.prompt, scores))
            row.tell(Delta(text, tokens))
        if not request.max_tokens:
            self._finish(row, "length")

    def _advance(self, row: Row, pick: Pick) -> None:
        sequence, request = row.sequence, row.sequence.request
        if pick.error is not None:
            raise pick.error  # this row's alone, see `_guarded`
        if pick.token is None:
            self._fail(row, "non_finite", _NON_FINITE)
            return
        sequence.generated.append(pick.token)
        self.generated_tokens += 1
        if len(sequence.generated) == 1:  # the prompt's pages are whole, and its logits were finite
            self.cache.keep(sequence)
        if pick.token == request.end_id:
            self._finish(row, "stop", None if pick.score is None else pick.score.logprob)
            return
        info = token_info(self._base.tokenizer, pick.token, pick.score)
        text, tokens, stopped = row.stream.push(info, accept=sequence.may_stop)
        if text or tokens:
            row.tell(Delta(text, tokens))
        if stopped:
            self._end(row, sequence.finished("stop"))
        elif len(sequence.generated) >= request.max_tokens:
            self._finish(row, "length")

    def _finish(self, row: Row, reason: FinishReason, end_logprob: float | None = None) -> None:
        """Give out what was held back, and end."""
        text, tokens, stopped = row.stream.finish(accept=row.sequence.may_stop)
        if text or tokens:
            row.tell(Delta(text, tokens))
        self._end(row, row.sequence.finished("stop" if stopped else reason, end_logprob))

    def _fail(self, row: Row, code: str, message: str) -> None:
        self._end(row, Failed(code, message))

    def _end(self, row: Row, event: Finished | Failed) -> None:
        """Free everything the row holds, then say so, so that who hears it finds it free; say so whatever happens."""
        sequence = row.sequence
        del self._rows[sequence.number]
        if sequence.cancelled and isinstance(event, Finished):  # its sink lost a piece
            event = Failed("cancelled", "the request was cancelled")
        with ExitStack() as then:
            then.callback(row.tell, event)
            if self.cache.is_forgotten(sequence.request):
                then.callback(self._wipe)
            then.callback(self._unseat, sequence)
            then.callback(self._runner.forget, sequence)
            then.callback(self.scheduler.remove, sequence)
            if isinstance(event, Finished) and sequence.generated:
                self.cache.keep(sequence)

    def _wipe(self) -> None:
        """Leave nothing of who was erased outside the pages either, and wait until they are zero."""
        self._runner.wipe()
        self.memory.settle()

    def _callers(self) -> set[str]:
        return {one for row in self._rows.values() for one in row.sequence.request.reuse or ()}

    def _too_long(self, offset: int, sequence: Sequence) -> str:
        prompt, most = len(sequence.request.prompt), sequence.request.max_tokens
        needed = f"{offset} prefix positions + {prompt} prompt tokens + {most} max_tokens"
        return f"{needed} are more than the base's {self._base.config.positions} positions"
