"""What each key of the fair share was served, and what the least served of those present was. Plain Python."""

import heapq
from collections import Counter

_REMEMBERED = 1024  # counters of absent keys that are kept without a look at whether they matter


class Served:
    """A virtual token counter a key (see `scheduler`); only ever grows while a key is there.

    Attributes:
        present: keys with requests, and how many.
        counters: tokens that each key was served, and at least what it was lifted to.
    """

    def __init__(self) -> None:
        self.present: Counter[str] = Counter()
        self.counters: dict[str, float] = {}
        # What each key was served at least, the least first; what is too low is mended once it is first.
        self._least: list[tuple[float, str]] = []
        self._listed: set[str] = set()

    def __getitem__(self, key: str) -> float:
        return self.counters[key]

    def come(self, key: str) -> None:
        """Count a request in; a key that was away starts level with the least served of the others."""
        if key not in self.present:
            self._lift(key)
        self.present[key] += 1

    def leave(self, key: str) -> None:
        """Count a request out; nothing is remembered once all have gone."""
        self.present[key] -= 1
        if not self.present[key]:
            del self.present[key]
        if not self.present:
            self.counters.clear()
            self._least.clear()
            self._listed.clear()

    def charge(self, key: str, tokens: int) -> None:
        """Add to what a key was served."""
        self.counters[key] += tokens

    @property
    def floor(self) -> float:
        """What the least served of the keys that are there was served; 0 without any."""
        while self._least:
            served, key = self._least[0]
            if key not in self.present:
                heapq.heappop(self._least)
                self._listed.remove(key)
            elif served < self.counters[key]:
                heapq.heapreplace(self._least, (self.counters[key], key))
            else:
                return served
        return 0.0

    def _lift(self, key: str) -> None:
        floor = self.floor
        if len(self.counters) > _REMEMBERED + 2 * len(self.present):
            # A lift would raise the others anyway.
            self.counters = {k: v for k, v in self.counters.items() if v > floor or k in self.present}
        self.counters[key] = max(self.counters.get(key, 0.0), floor)
        if key not in self._listed:
            heapq.heappush(self._least, (self.counters[key], key))
            self._listed.add(key)
