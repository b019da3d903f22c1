"""Ids that are gone for good, remembered as long as something under way may still name them. Plain Python."""

import time
from collections.abc import Callable, Collection, Iterable

REMEMBERED_S = 3600.0


class Gone:
    """Ids that are never given twice and that nothing new can name, because they were deleted where they come from.

    What had looked one up before that names it within moments. So an id is forgotten an hour after it was added
    last, unless it is among `named`; it goes when others come, and those of an hour are all that there are.

    Args:
        named: ids that something under way names, however long it takes.
        clock: seconds.
    """

    def __init__(
        self,
        named: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._named, self._clock = named, clock
        self._since: dict[str, float] = {}  # the oldest first

    def __contains__(self, gone_id: object) -> bool:
        return gone_id in self._since

    def __len__(self) -> int:
        return len(self._since)

    def any_of(self, ids: Iterable[str]) -> bool:
        """Whether one of these is gone."""
        return any(one in self._since for one in ids)

    def add(self, ids: Iterable[str]) -> None:
        """Remember ids from now on, and forget those of long ago."""
        now = self._clock()
        old = []
        for gone_id, since in self._since.items():
            if now - since < REMEMBERED_S:
                break
            old.append(gone_id)
        named = self._named() if old else ()
        for gone_id in old:
            del self._since[gone_id]
        for gone_id in (*(one for one in old if one in named), *ids):
            self._since.pop(gone_id, None)
            self._since[gone_id] = now
