"""What a run survives: a store that does not take an event or a checkpoint."""

import contextlib
from collections.abc import Iterator

from structlog.typing import FilteringBoundLogger

from prefix_store.errors import LeaseLost


@contextlib.contextmanager
def forgiven(log: FilteringBoundLogger, what: str) -> Iterator[None]:
    """A database that is busy costs an event or a checkpoint, not the run; a lost lease does end it."""
    try:
        yield
    except LeaseLost:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the store's driver raises
        log.warning("job.not_kept", what=what, error=type(error).__name__)
