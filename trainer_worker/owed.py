"""Jobs that a worker let go of and could not give back to the queue, since the store was away."""

import time
from collections.abc import Callable

import structlog

from prefix_store.errors import Unavailable

log = structlog.get_logger("trainer_worker")

AGAIN_SECONDS = 0.5


class Owed:
    """What is owed to the queue. It is given back before anything is claimed, and sooner than that is tried again.

    Else a lease that has run out counts as a crash of the job, for whoever claims it.
    """

    def __init__(self) -> None:
        self._jobs: dict[str, Callable[[], None]] = {}

    def add(self, job_id: str, give_back: Callable[[], None]) -> None:
        """Remember a job and what gives it back, which raises Unavailable while the store is away."""
        self._jobs[job_id] = give_back

    def settle(self) -> bool:
        """Give all of it back; False if the store is still away."""
        for job_id, give_back in list(self._jobs.items()):
            try:
                give_back()
            except Unavailable:
                return False
            except Exception as error:  # noqa: BLE001 - its lease runs out, and then it is as if it had crashed
                log.warning("job.not_given_back", job=job_id, error=type(error).__name__)
            del self._jobs[job_id]
        return True

    def settle_at_last(self, seconds: float) -> None:
        """The same, tried again for some seconds; what is left then is told of."""
        give_up = time.monotonic() + seconds
        while not self.settle():
            if time.monotonic() > give_up:
                log.warning("jobs.not_given_back", jobs=list(self._jobs))
                return
            time.sleep(AGAIN_SECONDS)
