"""The thread that owns the device and turns the loop; the only part of the engine that others call.

Every method may be called from any thread. What it asks for is put into an inbox and done between two
steps on the engine's thread, where all sinks are called too: an event that a sink did not get before
`revoke` returned, it never gets.
"""

import logging
import math
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from prefix_engine.base import Base
from prefix_engine.config import EngineConfig
from prefix_engine.generation import Generation
from prefix_engine.loop import Loop
from prefix_engine.pool import Loaded, Loader
from prefix_engine.request import SEED_BITS, Failed, QueueFullError, Request
from prefix_engine.row import Sink, tell, timed
from prefix_engine.sampling import Sampler
from prefix_engine.sequence import Sequence, Times
from prefix_engine.stats import EngineStats, stats_of
from prefix_engine.turns import Turns
from prefix_engine.unfinished import Unfinished

log = logging.getLogger(__name__)

_IDLE_S = 0.5  # an idle loop turns this often, for beat_age


@dataclass(slots=True)
class _Revocation:
    prefix_ids: set[str]
    done: threading.Event


class Engine:
    """Continuous batching over one base with a pool of prefixes.

    Args:
        base: the frozen model.
        config: limits.
        loader: called on loader threads with a request's `prefix_id`; what it raises fails the requests
            that named the prefix, `LoadRefused` with its own code and words, all else with `load_failed`.
        sampler: chooses tokens; the default is `sampling.RowSampler`.
        entropy: seeds rows that name no seed.
    """

    def __init__(
        self,
        base: Base,
        config: EngineConfig,
        loader: Loader,
        *,
        sampler: Sampler | None = None,
        entropy: Callable[[], int] = lambda: secrets.randbits(SEED_BITS),
    ) -> None:
        self._base = base.emptied()
        self._config = config
        self._entropy = entropy
        self._turns = Turns()
        self._wakeup = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._revocations: list[_Revocation] = []
        self._loop = Loop(base, config, loader, lambda one: self._post(partial(self._settle, one)), sampler)
        run = self._turns.step()(self._run)  # as one long step: all its sinks are called inside
        self._thread = threading.Thread(target=run, name="prefix-engine", daemon=True)
        self._next_number = 0
        self._unfinished = Unfinished(config.max_waiting, config.max_waiting_tokens)
        self._poked = self._owned = self._draining = self._closing = self._stopped = self._broken = False
        self._beat = time.monotonic()

    @property
    def kernels(self) -> str:
        """What computes: `native` or `torch`."""
        return self._loop.kernels

    def start(self) -> None:
        """Start the thread of the loop and the loader threads; RuntimeError if it was closed."""
        with self._wakeup:
            if self._stopped:
                raise RuntimeError("the engine was closed; make another")
            self._loop.pool.start()
            self._owned = True
            self._thread.start()

    def submit(self, request: Request, sink: Sink) -> Generation:
        """Queue a request.

        Args:
            request: what to generate.
            sink: called on the engine's thread with every event; must not block. Exactly one Finished or Failed comes
                last. An exception from it costs this request its row.

        Raises:
            RequestError: a token id that the base does not have.
            QueueFullError: as many requests or tokens wait as may; what nothing waits before is taken whatever its size.
        """
        request.check_vocabulary(self._base.config.vocab)
        seed = request.sampling.seed if request.sampling.seed is not None else self._entropy()
        with self._wakeup:
            refusal = self._refusal()
            if refusal is None:
                self._check_room(request)
            self._next_number += 1
            sequence = Sequence(self._next_number, request, seed, times=Times(time.monotonic()))
            self._unfinished.add(sequence)
            self._post(partial(self._take, sequence, timed(sequence, sink, self._ended), refusal))
        return Generation(sequence, self._cancel)

    def revoke(self, prefix_ids: Iterable[str]) -> None:
        """Stop every use of these prefixes, for good.

        Blocks until no row and no load of them is left and their pages are zeroed, with all texts behind them. Their requests
        failed with `revoked` before it returns, as later ones do, after an hour by the loader (`gone.Gone`). Not for a sink.
        """
        self._wait(self.begin_revocation(prefix_ids))

    def begin_revocation(self, prefix_ids: Iterable[str]) -> threading.Event:
        """Begin `revoke`; the event is set when that would have returned, which a load may hold up for long."""
        revocation = _Revocation(set(prefix_ids), threading.Event())
        self._post(lambda: self._begin_revocation(revocation))
        return revocation.done

    def forget(self, ids: Iterable[str]) -> None:
        """Zero every kept text of requests that had one of these ids in `reuse`, and keep none any more.

        Blocks until it is done; a page that a running row reads is zeroed when that row ends. Requests that
        name the ids are answered all the same. Not to be called from a sink.
        """
        gone, done = set(ids), threading.Event()
        self._post(lambda: self._loop.forget(gone))
        self._post(done.set)
        self._wait(done)

    def holds(self, prefix_ids: Iterable[str]) -> set[str]:
        """Those that are resident, loaded or being loaded, or have a kept text behind them; the loop is not stopped."""
        pool, cache = self._loop.pool, self._loop.cache
        return {prefix_id for prefix_id in prefix_ids if pool.holds(prefix_id) or cache.holds(prefix_id)}

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests with `draining`, wait for the others; whether all ended in time."""
        with self._wakeup:
            self._draining = True
            return self._wakeup.wait_for(lambda: not self._unfinished.count, timeout_s)

    def turn(self) -> bool:
        """Do one step on the caller's thread, who never calls `start`; whether there was anything to do but wait.

        For who generates beside other work of its own. Only one thread may turn an engine.
        """
        with self._turns.step():
            with self._wakeup:
                if not (self._owned or self._stopped):
                    self._loop.pool.start()
                    self._owned = True
            self._take_in()
            return self._loop.turn(time.monotonic())

    def close(self) -> None:
        """Stop the loop after its step; what has not ended fails with `engine_stopped`."""
        with self._wakeup:
            self._closing = True
            self._wake()
        if self._thread.is_alive():
            self._thread.join()
        with self._turns.pause(), self._wakeup:
            self._finish_off()

    def stats(self) -> EngineStats:
        """What goes on now, and counters since the start; read without stopping the loop."""
        scheduler = self._loop.scheduler
        waiting = self._unfinished.waiting(scheduler.running, scheduler.running_tokens)
        return stats_of(self._loop, *waiting, self._config.rows)

    def beat_age(self) -> float:
        """Seconds since a step last ended, or since the loop last turned with nothing to do.

        Grows while the loop stands, or turns without a step although there is work; infinite once an error ended it,
        0 once it was closed.
        """
        if self._stopped:
            return math.inf if self._broken else 0.0
        return time.monotonic() - self._beat

    def _check_room(self, request: Request) -> None:
        scheduler = self._loop.scheduler
        why = self._unfinished.refusal(request.positions, scheduler.running, scheduler.running_tokens)
        if why is not None:
            raise QueueFullError(why)

    def _cancel(self, sequence: Sequence) -> None:
        with self._wakeup:
            self._unfinished.cancel(sequence)
            self._wake()

    def _refusal(self) -> Failed | None:
        if self._stopped or self._closing:
            return Failed("engine_stopped", "the engine has stopped")
        return Failed("draining", "the engine takes no new requests") if self._draining else None

    def _wake(self) -> None:
        with self._wakeup:
            self._poked = True
            self._wakeup.notify_all()

    def _post(self, action: Callable[[], None]) -> None:
        """Have `action` done on the loop's thread; at once if that does not run."""
        with self._wakeup:
            if self._owned:
                self._inbox.append(action)
                self._wake()
            else:
                action()

    def _wait(self, done: threading.Event) -> None:
        """Wait; who turns the engine does meanwhile what is posted, for nobody else would. RuntimeError from a sink."""
        while self._turns.are_mine() and not done.is_set():
            with self._turns.step():
                self._take_in()
            with self._wakeup:
                self._wakeup.wait_for(lambda: self._poked or done.is_set(), _IDLE_S)
        done.wait()

    def _ended(self, sequence: Sequence) -> None:
        with self._wakeup:
            self._unfinished.end(sequence)
            self._wakeup.notify_all()

    def _run(self) -> None:
        """The loop's thread; what follows is done on it."""
        try:
            while not self._closing:
                self._take_in()
                stepped = self._loop.turn(time.monotonic())
                if stepped or not (self._unfinished.count or self._revocations):
                    self._beat = time.monotonic()
                if not stepped:
                    self._rest()
        except BaseException:  # a panic of a library in Rust is no Exception
            self._broken = True
            log.exception("engine.stopped")
        with self._wakeup:
            self._finish_off()

    def _take_in(self) -> None:
        """Do what was posted until now; what one that raises leaves undone is done at the end of all."""
        with self._wakeup:
            self._poked = False
            count = len(self._inbox)
        for _ in range(count):
            self._inbox.popleft()()

    def _take(self, sequence: Sequence, sink: Sink, refusal: Failed | None) -> None:
        if refusal is None:
            self._loop.add(sequence, sink)
        else:
            tell(sequence, sink, refusal)

    def _rest(self) -> None:
        """Wait for something to do, at most until the next deadline."""
        deadline = self._loop.next_deadline()
        limit = _IDLE_S if deadline is None else min(_IDLE_S, max(0.0, deadline - time.monotonic()))
        with self._wakeup:
            self._wakeup.wait_for(lambda: self._poked, limit)

    def _settle(self, loaded: Loaded) -> None:
        self._beat = time.monotonic()  # also where every load fails: the thread gets on
        self._loop.settle(loaded)
        self._end_revocations()

    def _begin_revocation(self, revocation: _Revocation) -> None:
        self._revocations.append(revocation)  # first: if this raises, its caller is told when all ends
        self._loop.revoke(revocation.prefix_ids)
        self._end_revocations()

    def _end_revocations(self) -> None:
        for revocation in [r for r in self._revocations if not self._loop.pool.is_loading(r.prefix_ids)]:
            self._revocations.remove(revocation)
            revocation.done.set()

    def _finish_off(self) -> None:
        """End everything, once, with the lock held; what is posted later is done by who posts it."""
        if self._stopped:
            return
        self._stopped = True
        self._owned = False
        self._loop.pool.stop()
        self._inbox.append(partial(self._loop.abandon, "engine_stopped", "the engine has stopped"))
        while self._inbox:
            try:
                self._inbox.popleft()()
            except BaseException:
                log.exception("engine.left_undone")
        self._end_revocations()
