"""The worker: takes one job after the other, and sweeps up between them. No job, however bad, ends it."""

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Literal

import structlog

from prefix_store import Store
from prefix_store.db import JOBS
from prefix_store.job_rows import Claim
from prefix_store.tracing import Tracing
from trainer_worker.owed import AGAIN_SECONDS, Owed
from trainer_worker.session import Session
from trainer_worker.settings import WorkerSettings

log = structlog.get_logger("trainer_worker")

_ERASE_SECONDS = 5.0
_SWEEP_SECONDS = 3600.0
_FAULT_SECONDS = 5.0
_GLANCE_SECONDS = 0.1
_JOIN_SECONDS = 5.0
_LAST_SECONDS = 5.0


class Worker:
    """One worker over an open store.

    `run` returns when `stopping` is set, by a signal or a thread: it takes no more jobs, and a running one
    saves its state and goes back to the queue.
    """

    def __init__(
        self,
        store: Store,
        settings: WorkerSettings,
        stopping: threading.Event,
        tracing: Tracing | None = None,
    ) -> None:
        self._store, self._settings, self._stop, self._tracing = store, settings, stopping, tracing
        self._news = threading.Event()
        self._owed = Owed()
        # The tenant that gave way last, which others come before at the next claim.
        self._behind: str | None = None
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self) -> None:
        """Work until `stopping` is set."""
        log.info("worker.ready", worker=self.name)
        upkeep = threading.Thread(target=self._keep_up, name="upkeep", daemon=True)
        upkeep.start()
        self._store.wakes.listen(JOBS, self._news.set)
        while not self._stop.is_set():
            if not self._owed.settle():
                self._stop.wait(AGAIN_SECONDS)
                continue
            claim = self._claimed()
            if claim is not None:
                session = Session(
                    self._store, self._settings, self.name, self._stop.is_set, self._owed, self._tracing
                )
                self._guarded("session", partial(session.run, claim))
                self._behind = session.turn.gave_way
        self._owed.settle_at_last(_LAST_SECONDS)
        upkeep.join(_JOIN_SECONDS)  # a storage that hangs must not hold up the end
        log.info("worker.stopped", worker=self.name)

    def _keep_up(self) -> None:
        """Go on with erasures every few seconds and sweep every hour: the worker may be the only one alive.

        On a thread of its own, so that a slow disk holds up no heartbeat.
        """
        swept = -_SWEEP_SECONDS
        while not self._stop.is_set():
            self._guarded("erasure", self._store.erasure.go_on)
            if time.monotonic() - swept >= _SWEEP_SECONDS:
                swept = time.monotonic()
                self._guarded("sweep", self._store.janitor.sweep)
            self._stop.wait(_ERASE_SECONDS)

    def _claimed(self) -> Claim | None:
        """The next job; None after a pause if there is none, or if the store does not answer."""
        try:
            seating: Literal["alone", "first"] = "first" if self._settings.worker_joint_jobs > 1 else "alone"
            claim = self._store.jobs.claim(self.name, seating, self._behind)
        except Exception as error:  # noqa: BLE001 - see _guarded
            log.warning("claim.failed", error=type(error).__name__)
            self._stop.wait(_FAULT_SECONDS)
            return None
        if claim is None:
            self._pause()
        return claim

    def _pause(self) -> None:
        """Until somebody says that there is a job, or it is time to look."""
        give_up = time.monotonic() + self._settings.worker_poll_seconds
        while (left := give_up - time.monotonic()) > 0 and not self._news.is_set():
            if self._stop.wait(min(left, _GLANCE_SECONDS) if self._store.wakes.heard else left):
                return
        self._news.clear()  # before the look that follows, so that what is said meanwhile is not missed

    def _guarded(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - it is tried again; the worker lives
            log.warning("worker.failed", what=what, error=type(error).__name__)
