"""One claim, from the rows that the store holds to the row that says how it ended.

Only here do frames of the training process become rows. Who else is trained there, session.py knows.
"""

import threading
import time
from collections.abc import Callable

import structlog

from prefix_store import Store
from prefix_store.errors import LeaseLost, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.job_rows import Claim
from prefix_store.publish import ResultFile, TrainedPrefix
from prefix_store.tracing import Tracing
from prefix_store.version_rows import Resolved
from trainer_worker.forgiveness import forgiven
from trainer_worker.frames import Frame
from trainer_worker.gate import verdict_on
from trainer_worker.reading import read_order
from trainer_worker.refusal import Refused
from trainer_worker.settings import WorkerSettings
from trainer_worker.tracing import JobSpan

log = structlog.get_logger("trainer_worker")

_AGAIN_SECONDS = 0.2
_LONGEST_PAUSE = 5.0
_PROGRESS_SECONDS = 1.0
_BEAT_SECONDS = 2.0  # a beat is also how a cancellation is noticed
_NO_BASE_SECONDS = 60.0
_MOST_NOT_BEGUN = 5  # attempts of a job that ended before they began, and of which none counts as a crash
_LONGEST_BACKOFF = 60.0


class Attempt:
    """One attempt at one job, whoever else is in its process."""

    def __init__(
        self, store: Store, settings: WorkerSettings, claim: Claim, tracing: Tracing | None = None
    ) -> None:
        self._store, self._settings, self.claim = store, settings, claim
        asked = claim.job.trace.get("request_id")
        self.log = log.bind(job=claim.job_id, attempt=claim.attempt, request_id=asked)
        self.span = JobSpan(tracing, claim)
        self._lease = store.settings.lease_seconds
        self._began = self._beaten = self.heard = time.monotonic()
        self._progress: dict[str, object] | None = None
        self._beating = threading.Lock()
        self._ended: Exception | None = None
        self.moved = False  # whether an update was made under this claim
        self._unheard = False  # whether no beat came back for a whole lease
        self._live: Resolved | None = None
        self._files: list[ResultFile] = []
        self._best: TrainedPrefix | None = None
        self.end: Frame | None = None  # what the process told last of this job, until it is settled
        self.again, self._pause = 0.0, _AGAIN_SECONDS  # when that may be tried again, on the monotonic clock

    def frames(self) -> list[Frame] | None:
        """What the training process needs to begin; None if the job cannot be trained, which is settled then.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        job = self.claim.job
        try:
            order, self._live = read_order(self._store, self._settings, self.claim)
        except Refused as error:
            self._store.jobs.fail(self.claim, error.code, error.message, error.param)
            self._over("refused")
            return None
        self.span.event("read")
        settings = self._settings
        return order.frames(
            settings.base_model,
            job.base_fingerprint,
            settings.worker_threads,
            device=settings.device,
            job=job.id,
            joint=self.claim.joint,
        )

    def take(self, frame: Frame) -> bool:
        """Pass on what the process tells of this job; False if it says how the job ended.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        self.heard = time.monotonic()
        if not self._passed_on(frame):
            self.end = frame
            self.beat(at_once=True)
            return False
        return True

    def lost(self) -> None:
        """Cancelled, erased, another's or not kept; called when nothing of the run is left in the process.

        That the store was away for a whole lease is not the job's fault: unless another worker has it, it goes back to
        the queue, where a lease that nobody gives back counts as a crash.
        """
        self._over("lost")
        if self._unheard:
            self._store.jobs.release(self.claim)
        else:
            self._store.jobs.cancelled(self.claim)

    def _passed_on(self, frame: Frame) -> bool:
        if frame.kind == "progress":
            self._progress, self.moved = dict(frame.fields), True
        elif frame.kind == "event":
            told = frame.fields
            with forgiven(self.log, "event"):
                self._store.jobs.event(self.claim, told["level"], told["type"], told["message"], told["data"])
        elif frame.kind == "resolved":
            with forgiven(self.log, "settings"):
                self._store.jobs.resolved(self.claim, frame.fields)
        elif frame.kind == "file":
            self._files.append(ResultFile(frame.fields["name"], frame.payload))
        elif frame.kind == "best":
            told = frame.fields
            self._best = TrainedPrefix(
                frame.payload, told["m"], told["position_offset"], told["template"], told["metrics"]
            )
        elif frame.kind == "checkpoint":
            with forgiven(self.log, "checkpoint"):
                failpoint("worker.before_checkpoint")
                self._store.jobs.save_checkpoint(
                    self.claim, frame.fields["update"], frame.payload, self._best
                )
                self._best = None  # kept; what was not kept goes with the next checkpoint
                self.span.event("checkpoint")
                failpoint("worker.after_checkpoint")
        else:
            return False
        return True

    def beat(self, *, at_once: bool = False) -> None:
        """Keep the lease and show progress: every other second, every second with news, thrice a lease.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        with self._beating:
            since = time.monotonic() - self._beaten
            told = self._progress
            pause = _BEAT_SECONDS if told is None else _PROGRESS_SECONDS
            if not at_once and since < min(pause, self._lease / 3):
                return
            try:
                answer = self._store.jobs.heartbeat(self.claim, told)
            except Exception as error:
                if since > self._lease:  # somebody else may have the job by now
                    raise self._not_kept() from error
                self.log.warning("job.heartbeat_failed", error=type(error).__name__)
                return
            if answer != "continue":
                raise LeaseLost(answer)
            self._beaten = time.monotonic()
            if self._progress is told:
                self._progress = None

    def keep(self) -> None:
        """Beat, on another thread than the session's, which finds in `check` what came of it."""
        try:
            self.beat()
        except Exception as error:  # noqa: BLE001 - see check
            self._ended = error.with_traceback(None)

    @property
    def seconds(self) -> float:
        """How long ago the job was claimed."""
        return time.monotonic() - self._began

    @property
    def kept_at(self) -> float:
        """When its lease was last prolonged, on the monotonic clock."""
        return self._beaten

    def check(self) -> None:
        """Raise what a beat found.

        Raises:
            LeaseLost: the job is no longer ours, or no beat has come back for so long that it may not be.
        """
        if self._ended is not None:
            raise self._ended
        if time.monotonic() > self._beaten + self._lease:
            raise self._not_kept()

    def _not_kept(self) -> LeaseLost:
        self._unheard = True
        return LeaseLost("the store did not answer for a whole lease")

    def settle(self, end: Frame, may_wait: Callable[[], bool] = lambda: True) -> None:
        """Make the end of the run the end of the job.

        While database or files are away it holds on to the result, as long as the lease and `may_wait` let it.

        Raises:
            LeaseLost: the job is no longer ours.
            Unavailable: they are away, and there is no more time to wait for them.
        """
        while not self.settled(end, may_wait):
            time.sleep(_AGAIN_SECONDS)
            self.beat(at_once=True)

    def settled(self, end: Frame, may_wait: Callable[[], bool]) -> bool:
        """Try `settle` once; False if database or files are away, and it is to be tried again.

        Raises:
            LeaseLost: the job is no longer ours.
            Unavailable: they are away, and there is no more time to wait for them.
        """
        try:
            failpoint("worker.before_settle")
            self._settle(end)
            failpoint("worker.after_settle")
        except Unavailable:
            if not may_wait():
                raise
            self.log.warning("job.settled_again")
            self.again = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
            return False
        self._over(end.kind)
        return True

    def _settle(self, end: Frame) -> None:
        store, claim = self._store, self.claim
        if end.kind == "trained":
            self._publish(end)
        elif end.kind == "refused":
            store.jobs.fail(claim, end.fields["code"], end.fields["message"], end.fields["param"])
        elif end.kind == "stopped":
            store.jobs.release(claim)
        elif end.kind == "no_base":
            self.log.error("base.not_loaded")
            told = "The base model cannot be loaded; trying again in a minute"
            store.jobs.event(claim, "warn", "message", told)
            store.jobs.release(claim, delay_seconds=_NO_BASE_SECONDS)
        else:
            self.crashed()

    def _publish(self, end: Frame) -> None:
        told = end.fields
        metrics = {name: value for name, value in told["metrics"].items() if value is not None}
        verdict = verdict_on(self.claim.job.evaluation, metrics)
        places = told["m"], told["position_offset"], told["template"]
        trained = TrainedPrefix(end.payload, *places, metrics, told["trained_tokens"], self._files)
        live = None if self._live is None else self._live.version_id
        self._store.jobs.complete(
            self.claim, trained, promote=verdict.promote, compared_with=live, reason=verdict.reason
        )

    def crashed(self) -> None:
        """The process died, or this job's part of it did."""
        delay = min(_LONGEST_BACKOFF, 2.0 ** min(self.claim.attempt, 10))
        self.log.error("job.process_died")
        self._store.jobs.release(self.claim, crashed=True, delay_seconds=delay)
        self._over("crashed")

    def not_begun(self) -> None:
        """No process could be started, or it ended before it looked at a job: the machine is to blame, for a while.

        It may be this job's size all the same, so that it is not tried for ever.
        """
        if self._store.jobs.not_begun(self.claim) > _MOST_NOT_BEGUN:
            self.crashed()
            return
        with forgiven(self.log, "event"):
            told = "No training process could be started; trying again in a minute"
            self._store.jobs.event(self.claim, "warn", "message", told)
        self.released(crashed=False, delay_seconds=_NO_BASE_SECONDS)

    def released(self, *, crashed: bool, delay_seconds: float) -> None:
        """Give it back: something of ours or of the store's went wrong."""
        self._over("failed")
        self._store.jobs.release(self.claim, crashed=crashed, delay_seconds=delay_seconds)

    def _over(self, how: str) -> None:
        """Tell, once, how the attempt ended."""
        if self.span.end(how):
            self.log.info("job.attempt_ended", how=how, seconds=round(time.monotonic() - self._began, 1))
