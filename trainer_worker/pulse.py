"""Keeps the leases of the jobs of a process, on a thread of its own.

The session's thread settles jobs, keeps checkpoints and reads files; while the store or a disk is slow over one
job, the others' leases must not run out.
"""

import threading
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Self

from trainer_worker.attempt import Attempt

_LOOK_SECONDS = 0.2
_END_SECONDS = 10.0  # a store that hangs must not hold up the end; what it answers then is nobody's any more


class Pulse:
    """Beats for whoever is seated, from the block's beginning to its end; `glance` is done every time before."""

    def __init__(
        self, seated: Callable[[], Iterable[Attempt]], glance: Callable[[], None] = lambda: None
    ) -> None:
        self._seated, self._glance = seated, glance
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(_END_SECONDS)

    def _beat(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._glance()
            for attempt in self._seated():
                attempt.keep()
