"""How fast the line empties, measured lately and only while something stands in it."""

import time
from collections.abc import Callable
from math import exp

_MEMORY_S = 10.0  # what is older than this counts a third
_LEAST_S = 0.5  # measured over less than this it says nothing


class Pace:
    """Tokens that leave in a second.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._left = self._seconds = 0.0
        self._at: float | None = None  # None: the line is empty, and its time does not count

    def entered(self) -> None:
        """Something stands in the line."""
        if self._at is None:
            self._at = self._clock()

    def left(self, tokens: int, *, empty: bool) -> None:
        """So many tokens have left; whether nothing is in the line now."""
        self._fade()
        self._left += tokens
        if empty:
            self._at = None

    def seconds(self, tokens: int) -> float | None:
        """How long so many take to leave; None while nothing was measured."""
        self._fade()
        if self._seconds < _LEAST_S or not self._left:
            return None
        return tokens * self._seconds / self._left

    def _fade(self) -> None:
        if self._at is None:
            return
        now = self._clock()
        spent, self._at = now - self._at, now
        kept = exp(-spent / _MEMORY_S)
        self._left *= kept
        self._seconds = self._seconds * kept + spent
