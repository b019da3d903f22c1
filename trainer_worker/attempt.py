"""One claim, from the rows that the store holds to the row that says how it ended.

The worker's process listens to the training process and keeps the lease; only here do frames become rows.
"""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from prefix_engine.template import Template
from prefix_store import Store
from prefix_store.errors import Corrupt, LeaseLost, NotFound, Unavailable
from prefix_store.job_rows import Claim
from prefix_store.publish import TrainedPrefix
from prefix_store.version_rows import Resolved
from trainer_worker.child_process import Child, Ended
from trainer_worker.frames import Frame
from trainer_worker.gate import judge
from trainer_worker.order import Order, Version
from trainer_worker.refusal import Refused
from trainer_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_LISTEN_SECONDS = 0.2
_PROGRESS_SECONDS = 1.0
_BEAT_SECONDS = 2.0  # a beat is also how a cancellation is noticed
_NO_BASE_SECONDS = 60.0
_LONGEST_BACKOFF = 60.0


class Attempt:
    """One attempt at one job.

    `stopping` says whether the worker is to end.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        claim: Claim,
        stopping: Callable[[], bool],
    ) -> None:
        self._store, self._settings, self._claim = store, settings, claim
        self._stopping = stopping
        self._lease = store.settings.lease_seconds
        self._beaten = time.monotonic()
        self._progress: dict[str, object] | None = None
        self._stop_by: float | None = None
        self._live: Resolved | None = None

    def run(self) -> None:
        """Train and settle."""
        try:
            self._run()
        except LeaseLost:  # cancelled, erased or another's; the child is dead by now
            log.info("job %s attempt %d: no longer ours", self._claim.job_id, self._claim.attempt)
            self._store.jobs.cancelled(self._claim)

    def _run(self) -> None:
        try:
            order = self._order()
        except Refused as error:
            self._store.jobs.fail(self._claim, error.code, error.message, error.param)
            return
        job = self._claim.job
        frames = order.frames(self._settings.base_model, job.base_fingerprint, self._settings.worker_threads)
        del order  # the child holds the rows from here on, nobody else
        with Child(frames) as child:
            del frames
            log.info("job %s attempt %d: training in %d", job.id, self._claim.attempt, child.pid)
            end = self._listened(child)
        if end is None:
            self._crashed()
        else:
            self._settle_patiently(end)

    def _order(self) -> Order:
        """Everything that the child needs, in memory.

        Raises:
            Refused: something that the job names is gone or damaged.
            LeaseLost: the job itself is.
        """
        store, job = self._store, self._claim.job
        try:
            training = [(file, store.datasets.read(self._claim, file)) for file in job.training_files]
            validation = job.validation_file
            held_out = (
                None if validation is None else (validation, store.datasets.read(self._claim, validation))
            )
        except NotFound:  # deleting a file or its owner cancels the job
            raise LeaseLost("a file of the job is gone") from None
        except Corrupt:
            raise Refused(
                "file_corrupt", "a file of the job is damaged; upload it again", "training_file"
            ) from None
        return Order(
            wishes=job.hyperparameters,
            seed=job.seed,
            training=training,
            validation=held_out,
            start=self._start(),
            live=self._live_version(),
            checkpoint=store.jobs.load_checkpoint(self._claim),
            checkpoint_seconds=self._settings.worker_checkpoint_seconds,
        )

    def _start(self) -> Version | None:
        try:
            found = self._store.jobs.start(self._claim)
            return None if found is None else self._version(found)
        except NotFound:
            raise Refused("start_deleted", "the version to start from was deleted", "model") from None
        except Corrupt:
            raise Refused(
                "corrupt", "the version to start from is damaged; start from another", "model"
            ) from None

    def _live_version(self) -> Version | None:
        self._live = self._store.jobs.live(self._claim)
        if self._live is None:
            return None
        try:
            return self._version(self._live)
        except NotFound:  # deleted this moment; if another went live, publishing notices
            self._live = None
        except (Corrupt, ValueError):
            self._store.jobs.event(
                self._claim, "warn", "message", "The live version is damaged and cannot be compared with"
            )
        return None

    def _version(self, found: Resolved) -> Version:
        """Its bytes; ValueError if the template beside them is none."""
        payload = self._store.registry.read(found)
        return Version(found.version_id, payload, Template.from_json(found.template))

    def _listened(self, child: Child) -> Frame | None:
        """Pass on what the child tells until it says how the job ended; None if it died without a word.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        heard = time.monotonic()
        while True:
            self._beat()
            if time.monotonic() > heard + self._settings.worker_silence_seconds:
                log.error("job %s: the training process is stuck", self._claim.job_id)
                return None
            if self._stopping() and self._out_of_time(child):
                return Frame("stopped")
            try:
                frame = child.hear(_LISTEN_SECONDS)
            except Ended:
                return None
            if frame is not None:
                heard = time.monotonic()
            if frame is not None and not self._passed_on(frame):
                self._beat(at_once=True)
                return frame

    def _out_of_time(self, child: Child) -> bool:
        if self._stop_by is None:
            self._stop_by = time.monotonic() + self._settings.worker_stop_seconds
            child.ask_to_stop()
        return time.monotonic() > self._stop_by

    def _passed_on(self, frame: Frame) -> bool:
        if frame.kind == "progress":
            self._progress = dict(frame.fields)
        elif frame.kind == "event":
            told = frame.fields
            with _forgiven("event"):
                self._store.jobs.event(
                    self._claim, told["level"], told["type"], told["message"], told["data"]
                )
        elif frame.kind == "checkpoint":
            with _forgiven("checkpoint"):
                self._store.jobs.save_checkpoint(self._claim, frame.fields["update"], frame.payload)
        else:
            return False
        return True

    def _beat(self, *, at_once: bool = False) -> None:
        """Keep the lease and show progress: every other second, every second with news, thrice a lease."""
        since = time.monotonic() - self._beaten
        pause = _BEAT_SECONDS if self._progress is None else _PROGRESS_SECONDS
        if not at_once and since < min(pause, self._lease / 3):
            return
        try:
            answer = self._store.jobs.heartbeat(self._claim, self._progress)
        except Exception as error:
            if since > self._lease:  # somebody else may have the job by now
                raise LeaseLost("the store did not answer for a whole lease") from error
            log.warning("job %s: heartbeat failed: %s", self._claim.job_id, type(error).__name__)
            time.sleep(_LISTEN_SECONDS)
            return
        self._beaten, self._progress = time.monotonic(), None
        if answer != "continue":
            raise LeaseLost(answer)

    def _settle_patiently(self, end: Frame) -> None:
        """Settle; while the database is away hold on to the result, as long as the lease may still be ours."""
        while True:
            try:
                return self._settle(end)
            except Unavailable:
                log.warning("job %s: the store does not answer; settling again", self._claim.job_id)
                time.sleep(_LISTEN_SECONDS)
                self._beat(at_once=True)

    def _settle(self, end: Frame) -> None:
        store, claim = self._store, self._claim
        log.info("job %s attempt %d: %s", claim.job_id, claim.attempt, end.kind)
        if end.kind == "trained":
            self._publish(end)
        elif end.kind == "refused":
            store.jobs.fail(claim, end.fields["code"], end.fields["message"], end.fields["param"])
        elif end.kind == "stopped":
            store.jobs.release(claim)
        elif end.kind == "no_base":
            log.error("the base model %s cannot be loaded", self._settings.base_model)
            store.jobs.event(
                claim, "warn", "message", "The base model cannot be loaded; trying again in a minute"
            )
            store.jobs.release(claim, delay_seconds=_NO_BASE_SECONDS)
        else:
            self._crashed()

    def _publish(self, end: Frame) -> None:
        told = end.fields
        metrics = {name: value for name, value in told["metrics"].items() if value is not None}
        verdict = judge(
            metrics["held_out_loss"],
            metrics["base_loss"],
            metrics.get("live_loss"),
            metrics.get("compared_loss"),
            metrics.get("compared_rows"),
        )
        trained = TrainedPrefix(
            end.payload,
            told["m"],
            told["position_offset"],
            told["template"],
            metrics,
            told["trained_tokens"],
        )
        live = None if self._live is None else self._live.version_id
        self._store.jobs.complete(
            self._claim, trained, promote=verdict.promote, compared_with=live, reason=verdict.reason
        )

    def _crashed(self) -> None:
        delay = min(_LONGEST_BACKOFF, 2.0 ** min(self._claim.attempt, 10))
        log.error("job %s attempt %d: the training process died", self._claim.job_id, self._claim.attempt)
        self._store.jobs.release(self._claim, crashed=True, delay_seconds=delay)


@contextlib.contextmanager
def _forgiven(what: str) -> Iterator[None]:
    """A database that is busy costs an event or a checkpoint, not the run; a lost lease does end it."""
    try:
        yield
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the store's driver raises
        log.warning("a job's %s was not kept: %s", what, type(error).__name__)
