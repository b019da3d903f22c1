"""One training process from its start to its end: whose jobs are in it, who joins, who leaves, who is to be told.

A job whose tenant has not opted in has a process of its own, one data key in it, and is killed with it the moment
it is cancelled. Others are trained together and leave one by one; if their process dies, the store has each
tried again alone.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import structlog

from prefix_store import Store
from prefix_store.errors import LeaseLost, Unavailable
from prefix_store.job_rows import Claim
from prefix_store.logs import place_of
from prefix_store.tracing import Tracing
from trainer_worker.attempt import Attempt
from trainer_worker.child_process import Child, Ended
from trainer_worker.frames import Frame
from trainer_worker.owed import Owed
from trainer_worker.pulse import Pulse
from trainer_worker.settings import WorkerSettings
from trainer_worker.turn import Turn

log = structlog.get_logger("trainer_worker")

_LISTEN_SECONDS = 0.2
_GLANCE_SECONDS = 0.3
_FAULT_SECONDS = 5.0


class Session:
    """Jobs of one training process.

    Args:
        store: that their rows are in.
        settings: of the worker.
        worker: its name.
        stopping: whether the worker is to end.
        owed: takes jobs that cannot be given back now.
        tracing: that attempts are told to.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        worker: str,
        stopping: Callable[[], bool],
        owed: Owed,
        tracing: Tracing | None = None,
    ) -> None:
        self._tracing, self._owed, self.turn = tracing, owed, Turn(store, settings)
        self._store, self._settings, self._worker, self._stopping = store, settings, worker, stopping
        self._seats: dict[str, Attempt] = {}
        self._leaving: dict[
            str, tuple[float, Callable[[], None]]
        ] = {}  # when its lease was last kept; what is done then
        self._joint = self._full = self._ready = self._asked = self._stopped = False
        self._looked = self._glanced = time.monotonic()
        self._share = self._wanted = 1.0
        self._stop_by: float | None = None
        # A leaving job's lease is no longer kept, and an erasure waits for its end at most: by then the process has
        # let go of the job or is gone.
        self._leave_seconds = 5 / 6 * store.settings.lease_seconds

    def run(self, claim: Claim) -> None:
        """Train a job, with others if it may be, until none is left."""
        self._joint = claim.joint
        attempt = Attempt(self._store, self._settings, claim, self._tracing)
        self._guarded(attempt, lambda: self._begin(attempt))

    def _begin(self, attempt: Attempt) -> None:
        frames = self._read(attempt)
        if frames is None:
            return
        self._seats[attempt.claim.job_id] = attempt
        try:
            with Pulse(lambda: list(self._seats.values()), self._glance), Child(frames) as child:
                del frames
                attempt.log.info("job.trains", process=child.pid, joint=self._joint)
                self._listen(child)
        finally:  # nothing of the process is left
            for job_id in list(self._leaving):
                self._gone(job_id)
            self._leave_all()

    @staticmethod
    def _read(attempt: Attempt) -> list[Frame] | None:
        """What its process needs, see `Attempt.frames`; reading many files may take longer than a lease."""
        with Pulse(lambda: [attempt]):
            return attempt.frames()

    def _leave_all(self) -> None:
        """Who told no end first: who did may have to wait for the store, and has its lease kept meanwhile."""
        with Pulse(lambda: list(self._seats.values())):
            for attempt in sorted(self._seats.values(), key=lambda attempt: attempt.end is not None):
                blamed = False if self._stopped else None if attempt.end or not self._ready else True
                self._guarded(attempt, partial(self._left, attempt), crashed=blamed)
                del self._seats[attempt.claim.job_id]

    def _left(self, attempt: Attempt) -> None:
        """A job that was in the process when it ended.

        Settled if it had told its end; given back if the worker stops or the process never began; else it crashed.
        """
        if attempt.end is not None:
            attempt.settle(attempt.end, self._may_wait)
        elif self._stopped:
            attempt.settle(Frame("stopped"), self._may_wait)
        elif not self._ready:
            attempt.not_begun()
        else:
            attempt.crashed()

    def _listen(self, child: Child) -> None:
        """Until every job has ended or left, or the process is not to be trusted any more."""
        with suppress(Ended):
            while self._seats or self._leaving:
                for attempt in list(self._seats.values()):
                    self._for_seat(child, attempt, partial(self._look_after, attempt))
                self._let_by(child)
                if self._stuck(child) or (self._leaving and not self._joint):
                    return
                if self._stopping() or self.turn.over(self._seats.values()):
                    if self._out_of_time(child):
                        self._stopped = True
                        return
                elif self._joint:
                    self._fill(child)
                self._hear(child, _LISTEN_SECONDS)

    def _look_after(self, attempt: Attempt) -> None:
        attempt.check()
        if attempt.end is not None and time.monotonic() > attempt.again:
            self._end(attempt, attempt.end)

    def _hear(self, child: Child, seconds: float) -> bool:
        """Take what the process says next; False if it says nothing for so long."""
        frame = child.hear(seconds)
        if frame is None:
            return False
        for attempt in self._seats.values():  # one at work is why the others are silent
            attempt.heard = time.monotonic()
        self._heard(child, frame)
        return True

    def _heard(self, child: Child, frame: Frame) -> None:
        if frame.kind == "dropped":
            self._gone(frame.job)
            return
        self._ready = True
        attempt = self._seats.get(frame.job)
        if attempt is not None:
            self._for_seat(child, attempt, lambda: self._take(attempt, frame))

    def _take(self, attempt: Attempt, frame: Frame) -> None:
        if not attempt.take(frame):
            if frame.kind == "no_base":
                self._full = True  # nobody fares better here; the next process may
            self._end(attempt, frame)

    def _end(self, attempt: Attempt, told: Frame) -> None:
        """Settle what it told; if the store is away, in a while again: the other jobs are not to wait for that."""
        if attempt.settled(told, self._may_wait):
            del self._seats[attempt.claim.job_id]

    def _for_seat(self, child: Child, attempt: Attempt, act: Callable[[], None]) -> None:
        """Do something for one job; if that fails it leaves, and nobody else."""
        try:
            act()
        except LeaseLost:
            self._leave(child, attempt, attempt.lost)
        except Exception as error:  # noqa: BLE001 - a bug, or the store: the other jobs go on
            attempt.log.error("job.attempt_failed", at=place_of(error))  # noqa: TRY400 - its text stays out
            crashed = not isinstance(error, Unavailable)  # the database's absence is not the job's fault
            self._leave(child, attempt, lambda: self._release(attempt, crashed=crashed))

    def _leave(self, child: Child, attempt: Attempt, then: Callable[[], None]) -> None:
        job_id = attempt.claim.job_id
        self._seats.pop(job_id, None)
        self._leaving[job_id] = (attempt.kept_at, then)
        if self._joint:
            child.drop(job_id)

    def _gone(self, job_id: str) -> None:
        _, then = self._leaving.pop(job_id, (0.0, None))
        if then is None:
            return
        try:
            then()
        except Unavailable:
            self._owed.add(job_id, then)
        except Exception as error:  # noqa: BLE001 - its lease runs out, and then it is as if it had crashed
            log.warning("job.not_given_back", job=job_id, error=type(error).__name__)

    def _stuck(self, child: Child) -> bool:
        """Whether the process is silent, or holds on to a job that is to leave, for too long.

        The store may have kept this thread for longer than that: what the process has said meanwhile counts.
        """
        if not self._overdue():
            return False
        give_up = time.monotonic() + self._store.settings.lease_seconds - self._leave_seconds
        while time.monotonic() < give_up and self._hear(child, 0.0):
            pass
        for attempt in self._silent():
            attempt.log.error("job.stuck")
        return self._overdue()

    def _overdue(self) -> bool:
        let_go = time.monotonic() - self._leave_seconds
        return bool(self._silent()) or any(since < let_go for since, _ in self._leaving.values())

    def _silent(self) -> list[Attempt]:
        heard = time.monotonic() - self._settings.worker_silence_seconds
        return [attempt for attempt in self._seats.values() if attempt.end is None and attempt.heard < heard]

    def _out_of_time(self, child: Child) -> bool:
        if not self._asked:
            self._asked = True
            child.ask_to_stop()
        return not self._may_wait()

    def _may_wait(self) -> bool:
        """Whether the worker is to go on, or has some of the time left that it has for its end."""
        if not self._stopping():
            return True
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.worker_stop_seconds
        return time.monotonic() <= self._stop_by

    def _let_by(self, child: Child) -> None:
        if self._wanted != self._share:
            self._share = self._wanted
            child.go_at(self._share)

    def _glance(self) -> None:
        """Find out, on the pulse's thread, whether a service on this machine generates: the process is to let it by."""
        now, asked = time.monotonic(), self._settings.worker_share_beside_texts
        if asked == 1.0 or now < self._glanced + _GLANCE_SECONDS:
            return
        self._glanced = now
        try:
            self._wanted = asked if self._store.feed.generating() else 1.0
        except Exception as error:  # noqa: BLE001 - the next look may fare better
            log.warning("texts.not_seen", error=type(error).__name__)

    def _fill(self, child: Child) -> None:
        """Take one more job in, if there is one and room for it."""
        now = time.monotonic()
        taken = len(self._seats) + len(self._leaving)
        full = self._full or taken >= self._settings.worker_joint_jobs or child.ended
        if full or not self._seats or now < self._looked + self._settings.worker_poll_seconds:
            return
        try:
            claim = self._store.jobs.claim(self._worker, "beside") if self._owed.settle() else None
        except Exception as error:  # noqa: BLE001 - the next look may fare better
            log.warning("claim.failed", error=type(error).__name__)
            claim = None
        if claim is None:
            self._looked = now
            return
        attempt = Attempt(self._store, self._settings, claim, self._tracing)
        self._guarded(attempt, lambda: self._seat(child, attempt))

    def _seat(self, child: Child, attempt: Attempt) -> None:
        frames = self._read(attempt)
        if frames is not None:
            attempt.log.info("job.joins")
            attempt.heard = time.monotonic()
            self._seats[attempt.claim.job_id] = attempt
            child.send(frames)

    def _guarded(self, attempt: Attempt, act: Callable[[], None], *, crashed: bool | None = None) -> None:
        """Do something for a job of which nothing is in a process.

        `crashed` says whether the job is to blame if that fails; None, unless the database was away.
        """
        try:
            act()
        except LeaseLost:
            self._leaving[attempt.claim.job_id] = (time.monotonic(), attempt.lost)
            self._gone(attempt.claim.job_id)
        except Exception as error:  # noqa: BLE001 - a bug, or the store: the next job may fare better
            attempt.log.error("job.attempt_failed", at=place_of(error))  # noqa: TRY400 - its text stays out
            blamed = not isinstance(error, Unavailable) if crashed is None else crashed
            self._release(attempt, crashed=blamed)

    def _release(self, attempt: Attempt, *, crashed: bool) -> None:
        give_back = partial(attempt.released, crashed=crashed, delay_seconds=_FAULT_SECONDS)
        try:
            give_back()
        except Unavailable:
            self._owed.add(attempt.claim.job_id, give_back)
        except Exception as error:  # noqa: BLE001 - its lease runs out
            attempt.log.warning("job.not_given_back", error=type(error).__name__)
