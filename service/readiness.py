"""Whether the database answers, asked by whoever comes without a key: so seldom, and on a thread of its own.

A loop on `/readyz` would else hold the threads and the pooled connections that authentication needs.
"""

import time
from collections.abc import Callable
from math import inf
from threading import Lock
from typing import Final

from anyio import CapacityLimiter, to_thread

HOLD_S: Final = 1.0


class Readiness:
    """The last answer of the database, at most a second old; one caller asks, the others wait for what it hears."""

    def __init__(self, ping: Callable[[], None]) -> None:
        self._ping = ping
        self._lock, self._limiter = Lock(), CapacityLimiter(1)
        self._heard: tuple[float, str | None] = (-inf, None)

    async def away(self) -> str | None:
        """Why the database cannot be used, or None."""
        at, why = self._heard
        if time.monotonic() - at < HOLD_S:
            return why
        return await to_thread.run_sync(self.ask, limiter=self._limiter)

    def ask(self) -> str | None:
        """The same, on the caller's thread."""
        with self._lock:
            at, why = self._heard
            if time.monotonic() - at >= HOLD_S:
                why = self._asked()
                self._heard = time.monotonic(), why
            return why

    def _asked(self) -> str | None:
        try:
            self._ping()
        except Exception as error:  # noqa: BLE001 - whatever it is, the database does not answer
            return f"the database does not answer ({type(error).__name__})"
        return None
