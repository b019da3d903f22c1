"""Removals of which one may fail without holding up the others: they are gone on with, and the first error is told last."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import inf

from prefix_store.errors import Unavailable


class Misses:
    """What could not be removed so far.

    Args:
        unreachable: whether nobody needs to ask for the rest: an outage must not cost one time-out for each of many.
        most: misses behind which the rest is left for another time, where each costs others theirs.

    Attributes:
        away: it was unreachable behind a miss, or there were as many as may be; whoever goes over many ends here.
    """

    def __init__(self, unreachable: Callable[[], bool] = lambda: False, most: float = inf) -> None:
        self._unreachable, self._left = unreachable, most
        self._first: Unavailable | OSError | None = None
        self.away = False

    @contextmanager
    def passed(self) -> Iterator[None]:
        """Within the block one thing is removed; Unavailable and OSError of it are kept for `tell`."""
        try:
            yield
        except (Unavailable, OSError) as error:
            self.add(error)

    def add(self, error: Unavailable | OSError) -> None:
        """Keep an error for `tell`."""
        self._first = self._first or error
        self._left -= 1
        self.away = self.away or self._left <= 0 or self._unreachable()

    def tell(self) -> None:
        """Raise the first error, if there was one."""
        if self._first is not None:
            raise self._first
