"""What each key of the fair share was served, and what the least served of those that wait was. Plain Python."""

import heapq
from collections import Counter

_REMEMBERED = 1024  # counters of absent keys that are kept without a look at whether they matter


class Served:
    """A virtual token counter a key (see `scheduler`); only ever grows while a key is there.

    A key that has nothing waiting and comes is lifted (Sheng et al. 2024, algorithm 2): to the least served of those
    that wait, or, where none does, to whom a row was given last. One that runs a little all the time, and so is never
    away, saves up nothing by it, nor does anybody who comes start below those who wait because of it.

    Attributes:
        present: keys with requests, waiting or running, and how many.
        waiting: those that wait alone.
        counters: tokens that each key was served, and at least what it was lifted to.
    """

    def __init__(self) -> None:
        self.present: Counter[str] = Counter()
        self.waiting: Counter[str] = Counter()
        self.counters: dict[str, float] = {}
        self._last: str | None = None  # whose request went out of the waiting line last
        # What each key was served at least, the least first; what is too low is mended once it is first.
        self._least: list[tuple[float, str]] = []
        self._listed: set[str] = set()

    def __getitem__(self, key: str) -> float:
        return self.counters[key]

    def come(self, key: str) -> None:
        """Count a request in, which waits."""
        if key not in self.waiting:
            self._lift(key)
        self.present[key] += 1
        self.waiting[key] += 1

    def start(self, key: str) -> None:
        """A request has waited long enough: it has a row."""
        self._last = key
        self.waiting[key] -= 1
        if not self.waiting[key]:
            del self.waiting[key]

    def leave(self, key: str) -> None:
        """Count a request out that had a row; nothing is remembered once all have gone."""
        self.present[key] -= 1
        if not self.present[key]:
            del self.present[key]
        if not self.present:
            self.counters.clear()
            self._least.clear()
            self._listed.clear()
            self._last = None

    def charge(self, key: str, tokens: int) -> None:
        """Add to what a key was served."""
        self.counters[key] += tokens

    @property
    def floor(self) -> float:
        """What a key is lifted to that comes now."""
        while self._least:
            served, key = self._least[0]
            if key not in self.waiting:
                heapq.heappop(self._least)
                self._listed.remove(key)
            elif served < self.counters[key]:
                heapq.heapreplace(self._least, (self.counters[key], key))
            else:
                return served
        return 0.0 if self._last is None else self.counters.get(self._last, 0.0)

    def _lift(self, key: str) -> None:
        floor = self.floor
        if len(self.counters) > _REMEMBERED + 2 * len(self.present):
            # A lift would raise the others anyway.
            kept = {*self.present, self._last}
            self.counters = {k: v for k, v in self.counters.items() if v > floor or k in kept}
        self.counters[key] = max(self.counters.get(key, 0.0), floor)
        if key not in self._listed:
            heapq.heappush(self._least, (self.counters[key], key))
            self._listed.add(key)
