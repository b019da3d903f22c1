"""Requests that wait for a row, in fair order; those that cannot run yet are kept out of the way. Plain Python.

Looking at thousands of requests whose prefixes are not there would cost every step milliseconds. So a
request whose prefix loads is not looked at until the load ends, and one whose load has not begun only while
a load can begin. What a walk passes is then what it admits, sets aside, or looks ahead at. Nor does a step look
at thousands of keys: those that something happened to are put where they belong, and a walk takes up a
key when its turn comes.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping
from collections.abc import Sequence as Items
from itertools import count

from prefix_engine.sequence import Sequence

_Place = tuple[int, Sequence]  # order of arrival, unique, so that no two sequences are compared
_Rank = tuple[
    float, int, str
]  # what a key is due, its first arrival among those that may be walked, and the key


class _Line:
    """Requests of one key by arrival: of the base, of prefixes that may be resident, of cold ones."""

    __slots__ = ("base", "cold", "known", "size")

    def __init__(self) -> None:
        self.base: list[_Place] = []
        self.known: list[_Place] = []
        self.cold: list[_Place] = []
        self.size = 0  # with those that stand in no list because their prefix loads

    @property
    def lists(self) -> tuple[list[_Place], list[_Place], list[_Place]]:
        """In the order in which a walk closes them, the last first."""
        return self.base, self.known, self.cold


class Waiting:
    """All waiting requests of one scheduler."""

    def __init__(self) -> None:
        self._lines: dict[str, _Line] = {}
        self._arrivals = count()
        self._places: dict[int, tuple[_Place, list[_Place] | None]] = {}  # by number: place, and its list
        self._aside: dict[str, dict[int, Sequence]] = {}  # by prefix: cold ones, and those that load
        self._named: Counter[str | None] = Counter()  # requests by prefix
        self._ranked: tuple[list[_Rank], ...] = (
            [],
            [],
            [],
        )  # for each of a line's lists, keys with some in it
        self._ranks: dict[str, _Rank] = {}  # what each key stands there as
        self._stirred: set[str] = set()  # keys whose rank may be another by now

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence.number in self._places

    @property
    def prefixes(self) -> Container[str | None]:
        """Those that requests here name, wherever they stand."""
        return self._named

    def add(self, sequence: Sequence) -> None:
        """Queue a request behind those of its key."""
        self._named[sequence.request.prefix_id] += 1
        line = self._lines.setdefault(sequence.request.share, _Line())
        line.size += 1
        self._stand((next(self._arrivals), sequence), self._awake(sequence))

    def remove(self, sequence: Sequence) -> None:
        """Take a request out, wherever it stands."""
        self._leave(sequence)
        del self._places[sequence.number]
        self._forget(sequence)
        named = sequence.request.prefix_id
        self._named[named] -= 1
        if not self._named[named]:
            del self._named[named]
        line = self._lines[sequence.request.share]
        line.size -= 1
        if not line.size:
            del self._lines[sequence.request.share]
        self.rank(sequence.request.share)

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
        self.rank(place[1].request.share)

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

    def rank(self, key: str) -> None:
        """Ask what a key is due again at the next walk; in between it is held to be due what it was."""
        if key in self._lines or key in self._ranks:
            self._stirred.add(key)

    def walk(self, due: Callable[[str], float]) -> "Walk":
        """Pass the requests in the order in which they would be admitted, were all of them ready.

        Args:
            due: what a key that has waiting requests is served, or owes.
        """
        for key in self._stirred:
            self._place(key, due)
        self._stirred.clear()
        return Walk(self._lines, self._ranked)

    def _place(self, key: str, due: Callable[[str], float]) -> None:
        """Put a key where it belongs among the ranked."""
        old, line = self._ranks.pop(key, None), self._lines.get(key)
        if old is not None:
            for ranked in self._ranked:
                at = bisect_left(ranked, old)
                if ranked[at : at + 1] == [old]:
                    del ranked[at]
        firsts = [places[0][0] for places in line.lists if places] if line else []
        if line and firsts:
            self._ranks[key] = rank = (due(key), min(firsts), key)
            for ranked, places in zip(self._ranked, line.lists, strict=True):
                if places:
                    insort(ranked, rank)


class Walk:
    """One pass by fair share; nothing may be added, removed or set aside meanwhile.

    Attributes:
        loads: whether to pass requests whose prefix is cold.
        prefixes: whether to pass requests with a prefix at all.
    """

    def __init__(self, lines: Mapping[str, _Line], ranked: Items[Items[_Rank]]) -> None:
        self.loads = self.prefixes = True
        self._lines, self._ranked = lines, ranked
        self._reached = [0] * len(ranked)
        self._queues: dict[str, Iterator[Sequence]] = {}
        self._heap: list[_Rank] = []

    def pass_over(self, key: str) -> None:
        """Pass no more requests of a key."""
        self._queues[key] = iter(())

    def __iter__(self) -> Iterator[Sequence]:
        heap = self._heap
        while self._reach():
            due, first, key = heap[0]
            sequence = next(self._queues[key], None)
            if sequence is None:
                heapq.heappop(heap)
                continue
            heapq.heapreplace(heap, (due + cost(sequence), first, key))
            yield sequence

    def _reach(self) -> bool:
        """Take up keys whose turn is before that of all taken up so far; whether there is any now."""
        for i, is_open in enumerate(self._open()):
            ranked = self._ranked[i]
            while is_open and self._reached[i] < len(ranked):
                rank = ranked[self._reached[i]]
                if self._heap and rank > self._heap[0]:
                    break
                self._reached[i] += 1
                if rank[2] not in self._queues:  # it may stand in several lists
                    self._queues[rank[2]] = self._of(self._lines[rank[2]])
                    heapq.heappush(self._heap, rank)
        return bool(self._heap)

    def _open(self) -> tuple[bool, bool, bool]:
        return True, self.prefixes, self.prefixes and self.loads

    def _of(self, line: _Line) -> Iterator[Sequence]:
        """One key's requests by arrival, of the lists that are open at each moment."""
        lists, at = line.lists, [0, 0, 0]
        while True:
            is_open = self._open()
            heads = [(lists[i][at[i]], i) for i in range(len(lists)) if is_open[i] and at[i] < len(lists[i])]
            if not heads:
                return
            (_, sequence), i = min(heads)
            at[i] += 1
            yield sequence


def cost(sequence: Sequence) -> int:
    """What a request is charged with when it starts: what there is to compute of its prompt."""
    return sequence.prompt_left
