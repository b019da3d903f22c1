"""Whom not to ask for a while: a server that did not answer costs nobody's time until one caller has tried again."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Shut(Exception):
    """Nothing was asked; the server was away a moment ago."""


class Breaker:
    """Open while a server answers; shut after a failure for `pause` seconds, then twice as long, up to `longest`."""

    def __init__(self, pause: float, longest: float) -> None:
        self._pause, self._longest = pause, longest
        self._lock = threading.Lock()
        self._failures = 0
        self._trying = False
        self._again_at = 0.0

    @contextmanager
    def asking(self, *failures: type[Exception]) -> Iterator[None]:
        """Ask the server something; while it is away one caller at a time does.

        Args:
            failures: exceptions of the block that mean that the server is away; they go on to the caller.

        Raises:
            Shut: do without it.
        """
        self._enter()
        away = False
        try:
            yield
        except failures:
            away = True
            raise
        finally:
            self._leave(away=away)

    @property
    def shut(self) -> bool:
        """Whether the last answer did not come."""
        return self._failures > 0

    def _enter(self) -> None:
        with self._lock:
            if not self._failures:
                return
            if self._trying or time.monotonic() < self._again_at:
                raise Shut
            self._trying = True

    def _leave(self, *, away: bool) -> None:
        with self._lock:
            self._trying = False
            if not away:
                self._failures = 0
                return
            now = time.monotonic()
            if now < self._again_at:  # one of many that were asking when the server went
                return
            self._again_at = now + min(self._longest, self._pause * 2 ** min(10, self._failures))
            self._failures += 1
