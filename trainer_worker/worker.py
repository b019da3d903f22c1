"""The worker: takes one job after the other, and sweeps up between them. No job, however bad, ends it."""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import partial

from prefix_store import Store
from prefix_store.errors import Unavailable
from prefix_store.job_rows import Claim
from trainer_worker.attempt import Attempt
from trainer_worker.faults import place_of
from trainer_worker.settings import WorkerSettings

log = logging.getLogger(__name__)

_ERASE_SECONDS = 5.0
_SWEEP_SECONDS = 3600.0
_FAULT_SECONDS = 5.0


class Worker:
    """One worker over an open store.

    `run` returns when `stopping` is set, by a signal or a thread: it takes no more jobs, and a running one
    saves its state and goes back to the queue.
    """

    def __init__(self, store: Store, settings: WorkerSettings, stopping: threading.Event) -> None:
        self._store, self._settings, self._stop = store, settings, stopping
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"

    def run(self) -> None:
        """Work until `stopping` is set."""
        log.info("worker %s is ready", self.name)
        upkeep = threading.Thread(target=self._keep_up, name="upkeep", daemon=True)
        upkeep.start()
        while not self._stop.is_set():
            claim = self._claimed()
            if claim is not None:
                self._work_on(claim)
        upkeep.join()
        log.info("worker %s has stopped", self.name)

    def _keep_up(self) -> None:
        """Go on with erasures every few seconds and sweep every hour: the worker may be the only one alive.

        On a thread of its own, so that a slow disk holds up no heartbeat.
        """
        swept = -_SWEEP_SECONDS
        while not self._stop.is_set():
            self._guarded("erasing", self._store.erasure.resume)
            if time.monotonic() - swept >= _SWEEP_SECONDS:
                swept = time.monotonic()
                self._guarded("sweeping", self._store.janitor.sweep)
            self._stop.wait(_ERASE_SECONDS)

    def _claimed(self) -> Claim | None:
        """The next job; None after a pause if there is none, or if the store does not answer."""
        try:
            claim = self._store.jobs.claim(self.name)
        except Exception as error:  # noqa: BLE001 - see _guarded
            log.warning("claiming failed: %s", type(error).__name__)
            self._stop.wait(_FAULT_SECONDS)
            return None
        if claim is None:
            self._stop.wait(self._settings.worker_poll_seconds)
        return claim

    def _work_on(self, claim: Claim) -> None:
        try:
            Attempt(self._store, self._settings, claim, self._stop.is_set).run()
        except Exception as error:  # noqa: BLE001 - a bug, or the store: the next job may fare better
            log.error("job %s: the attempt failed: %s", claim.job_id, place_of(error))  # noqa: TRY400 - its text stays out
            crashed = not isinstance(error, Unavailable)  # the database's absence is not the job's fault
            back = partial(self._store.jobs.release, claim, crashed=crashed, delay_seconds=_FAULT_SECONDS)
            self._guarded("releasing", back)

    def _guarded(self, what: str, act: Callable[[], object]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - it is tried again; the worker lives
            log.warning("%s failed: %s", what, type(error).__name__)
