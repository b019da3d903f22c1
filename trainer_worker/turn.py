"""How long jobs keep their place while another tenant's wait: fewest running, then oldest, orders only who comes next.

Without this a tenant whose jobs train for days, which the limits of a job allow, would have a worker for as long.
"""

import time
from collections.abc import Iterable

import structlog

from prefix_store import Store
from trainer_worker.attempt import Attempt
from trainer_worker.settings import WorkerSettings

log = structlog.get_logger("trainer_worker")

_LOOK_SECONDS = 5.0  # an idle worker takes what has waited for less


class Turn:
    """The turn of the jobs of one training process; `gave_way` is the tenant whose job ended it, None until then."""

    def __init__(self, store: Store, settings: WorkerSettings) -> None:
        self._store, self._seconds = store, settings.worker_job_seconds
        self._looked = time.monotonic()
        self.gave_way: str | None = None

    def over(self, attempts: Iterable[Attempt]) -> bool:
        """Whether all are to save their states and go back to the queue; once it is, it stays so.

        A job that has got nowhere since it was claimed keeps its place, or it might be sent back for ever.
        """
        now = time.monotonic()
        if self.gave_way is not None or now < self._looked + _LOOK_SECONDS:
            return self.gave_way is not None
        self._looked = now
        long = [one for one in attempts if one.moved and one.end is None and one.seconds > self._seconds]
        try:
            for attempt in sorted(long, key=lambda one: -one.seconds):
                if self._store.jobs.another_waits(attempt.claim, _LOOK_SECONDS):
                    attempt.log.info("job.gives_way")
                    self.gave_way = attempt.claim.owner.tenant_id
                    return True
        except Exception as error:  # noqa: BLE001 - the next look may fare better
            log.warning("queue.not_seen", error=type(error).__name__)
        return False
