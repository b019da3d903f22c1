"""Requests that wait for a row, in fair order; those that cannot run yet are kept out of the way. Plain Python.

Looking at thousands of requests whose prefixes are not there would cost every step milliseconds. So a
request whose prefix loads is not looked at until the load ends, and one whose load has not begun only while
a load can begin. What a walk passes is then what it admits, sets aside, or looks ahead at.
"""

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping
from itertools import count

from prefix_engine.sequence import Sequence

_Place = tuple[int, Sequence]  # order of arrival, unique, so that no two sequences are compared


class _Line:
    """Requests of one key by arrival: of the base, of prefixes that may be resident, of cold ones."""

    __slots__ = ("base", "cold", "known", "size")

    def __init__(self) -> None:
        self.base: list[_Place] = []
        self.known: list[_Place] = []
        self.cold: list[_Place] = []
        self.size = 0  # with those that stand in no list because their prefix loads


class Waiting:
    """All waiting requests of one scheduler."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._arrivals = count()
        self._places: dict[int, tuple[_Place, list[_Place] | None]] = {}  # by number: place, and its list
        self._aside: dict[str, dict[int, Sequence]] = {}  # by prefix: cold ones, and those that load

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.number in self._places

    def add(self, sequence: Sequence) -> None:
        """Queue a request behind those of its key."""
        line = self._lines.setdefault(sequence.request.share, _Line())
        line.size += 1
        self._stand((next(self._arrivals), sequence), self._awake(sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a request out, wherever it stands."""
        self._leave(sequence)
        del self._places[sequence.number]
        self._forget(sequence)
        line = self._lines[sequence.request.share]
        line.size -= 1
        if not line.size:
            del self._lines[sequence.request.share]

    def set_aside(self, sequence: Sequence, *, cold: bool) -> None:
        """Look no more at a request before `wake`; at a cold one still in walks that may begin loads."""
        place = self._leave(sequence)
        self._stand(place, self._lines[sequence.request.share].cold if cold else None)
        self._aside.setdefault(sequence.request.prefix_id or "", {})[sequence.number] = sequence

    def wake(self, prefix_id: str) -> None:
        """Look again at all requests of a prefix, in the places that they had."""
        for sequence in self._aside.pop(prefix_id, {}).values():
            self._stand(self._leave(sequence), self._awake(sequence))

    def _awake(self, sequence: Sequence) -> list[_Place]:
        line = self._lines[sequence.request.share]
        return line.base if sequence.request.prefix_id is None else line.known

    def _stand(self, place: _Place, where: list[_Place] | None) -> None:
        if where is not None:
            insort(where, place)
        self._places[place[1].number] = (place, where)

    def _leave(self, sequence: Sequence) -> _Place:
        place, where = self._places[sequence.number]
        if where is not None:
            del where[bisect_left(where, place)]
        return place

    def _forget(self, sequence: Sequence) -> None:
        """Drop it from those set aside for its prefix."""
        prefix_id = sequence.request.prefix_id or ""
        aside = self._aside.get(prefix_id, {})
        aside.pop(sequence.number, None)
        if not aside:
            self._aside.pop(prefix_id, None)

    def walk(self, served: Mapping[str, float]) -> "Walk":
        """Pass the requests in the order in which they would be admitted, were all of them ready."""
        return Walk(self._lines, served)


class Walk:
    """One pass by fair share; nothing may be added, removed or set aside meanwhile.

    Attributes:
        loads: whether to pass requests whose prefix is cold.
        prefixes: whether to pass requests with a prefix at all.
    """

    def __init__(self, lines: Mapping[str, _Line], served: Mapping[str, float]) -> None:
        self.loads = self.prefixes = True
        self._queues = {key: self._of(line) for key, line in lines.items()}
        self._heap = [(served[key], _first(line), key) for key, line in lines.items()]
        heapq.heapify(self._heap)

    def pass_over(self, key: str) -> None:
        """Pass no more requests of a key."""
        self._queues[key] = iter(())

    def __iter__(self) -> Iterator[Sequence]:
        heap = self._heap
        while heap:
            served, first, key = heap[0]
            sequence = next(self._queues[key], None)
            if sequence is None:
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, (served + cost(sequence), first, key))
            yield sequence

    def _of(self, line: _Line) -> Iterator[Sequence]:
        """One key's requests by arrival, of the lists that are open at each moment."""
        lists, at = (line.base, line.known, line.cold), [0, 0, 0]
        while True:
            is_open = (True, self.prefixes, self.prefixes and self.loads)
            heads = [(lists[i][at[i]], i) for i in range(len(lists)) if is_open[i] and at[i] < len(lists[i])]
            if not heads:
                return
            (_, sequence), i = min(heads)
            at[i] += 1
            yield sequence


def _first(line: _Line) -> int:
    heads = [places[0][0] for places in (line.base, line.known, line.cold) if places]
    return min(heads, default=0)


def cost(sequence: Sequence) -> int:
    """What a request is charged with when it starts: what there is to compute of its prompt."""
    return sequence.prompt_left
