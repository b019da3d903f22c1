"""Who runs in the next step. Plain Python: decides, and leaves every tensor to the runner.

Waiting requests are ordered by fair share (Sheng et al. 2024, "Fairness in Serving Large Language
Models", virtual token counter): the key that was served least comes next, first come first served
within a key, and a key that had nothing waiting is lifted to the least served of those that have, so that nobody
saves up service by staying away or by asking for little. A row keeps its memory until it ends: pages for prompt and max_tokens are
taken on admission, so nothing running is ever pushed out. What a key with many requests could do to the
others even so is bounded twice: beyond the rows there are spare seats for keys that have fewer rows than another,
and rows take turns while those are taken, and the last pages are kept for such keys too; and while a key has more than its share of all seats, steps are
small and go to the least served first.
"""

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass
from enum import Enum

from prefix_engine.prompt_cache import PromptCache
from prefix_engine.sequence import Sequence
from prefix_engine.served import Served
from prefix_engine.waiting import Waiting, cost

_SPARE = 2  # rows for one spare seat
_SMALL_STEP = 6  # tokens for each of the rows in a step, while a key has more than its share
_SPARE_PAGES = 8  # of all pages one spare, at most: what the longest text needs
_LEFT_OVER = 2  # of them that such a key may fill
_A_LOT = 4  # who has no more than this part of the rows is not over its share
_MOST_PASSED_OVER = 4  # steps in a row without a token for a row that decodes
_MOST_UNREAD = 32  # steps in a row without a chunk, after which a prompt's turn comes
_LOAD = 64  # tokens that a load is charged as: else who asks for a word each of many prefixes has all loads


class Readiness(Enum):
    """What admission learns about a waiting request's prefix."""

    READY = "ready"
    LOADING = "loading"  # delays only itself; not asked about again before `Scheduler.wake`
    BEGUN = "begun"  # the same, and it was this very question that began the load
    COLD = "cold"  # neither there nor loading, because as many loads as may be are under way
    NO_ROOM = "no room"  # loaded, but running rows pin the pool: later prefixes wait, so that it drains


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens `start..stop` of one row."""

    sequence: Sequence
    start: int
    stop: int

    @property
    def ends_prompt(self) -> bool:
        """Whether its last token is the prompt's last."""
        return self.stop == len(self.sequence.request.prompt)


@dataclass(frozen=True, slots=True)
class Plan:
    """One step: decode rows get one token each, then prompts get what is left of the budget."""

    decode: tuple[Sequence, ...]
    chunks: tuple[Chunk, ...]

    @property
    def tokens(self) -> int:
        """Tokens that the step computes."""
        return len(self.decode) + sum(chunk.stop - chunk.start for chunk in self.chunks)


def seats_for(rows: int) -> int:
    """Rows that may run at once, spare seats among them."""
    return rows + rows // _SPARE


class Scheduler:
    """Waiting requests by fair share, running rows by arrival.

    Args:
        rows: that decode in one step.
        step_tokens: of one step.
        chunk_tokens: of one prompt in one step.
        pages: of the texts.
        longest: pages of the longest text there may be.
    """

    def __init__(
        self, rows: int, step_tokens: int, chunk_tokens: int, pages: PromptCache, longest: int = 0
    ) -> None:
        self._rows, self._spare = rows, seats_for(rows) - rows
        self._spare_pages = min(longest, pages.total // _SPARE_PAGES)
        self._step_tokens = step_tokens
        self._chunk_tokens = chunk_tokens
        self._pages = pages
        self._queue = Waiting()
        self._served = Served()
        self._turn = 0
        self.running: dict[int, Sequence] = {}
        self.running_tokens = 0  # text positions that the running rows may use

    @property
    def waiting(self) -> int:
        """Requests without a row."""
        return len(self._queue)

    @property
    def awaited(self) -> Container[str | None]:
        """Prefixes that these name."""
        return self._queue.prefixes

    def add(self, sequence: Sequence) -> None:
        """Queue a request behind those of its key."""
        self._served.come(sequence.request.share)
        self._queue.add(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a request out, waiting or running, and its pages back."""
        key = sequence.request.share
        if sequence.number in self.running:
            del self.running[sequence.number]
            self.running_tokens -= sequence.request.positions
            self._queue.rank(key)
        else:
            self._queue.remove(sequence)
            self._served.start(key)
            self._pay_load(sequence)
        self._served.leave(key)
        self._pages.release(sequence)

    def wake(self, prefix_id: str) -> None:
        """Ask again about the requests of a prefix whose load has ended, however it did."""
        self._queue.wake(prefix_id)

    def admit(self, readiness: Callable[[Sequence], Readiness], look_ahead: int) -> list[Sequence]:
        """Give rows and pages to what may run, in fair order; returns the new rows.

        `readiness` is asked about each request passed, and may start the load of its prefix. A request
        that is ready but finds no row or no pages ends the admission, so that small requests cannot
        starve a large one; where pages are short for its key alone (`_takes_spare`), it ends that key's. Up to
        `look_ahead` requests are asked about even so. One that awaits another's
        prompt lets others pass; behind `look_ahead` requests, those of other keys alone, for thousands that
        await one prompt would cost every step milliseconds.
        """
        admitted: list[Sequence] = []
        aside: list[tuple[Sequence, bool]] = []
        full, short = False, set[str]()
        held = self._held()
        walk = self._queue.walk(self._due())
        for place, sequence in enumerate(walk):
            key = sequence.request.share
            full = full or len(self.running) >= self._rows + self._spare
            # A row; or a spare seat, for whoever has fewer than the key that has most.
            seat = not full and (len(self.running) < self._rows or held[key] < max(held.values()))
            if place >= look_ahead and not seat:
                if full:
                    break
                walk.pass_over(key)  # seats are left, for others
                continue
            state = readiness(sequence)
            if state is Readiness.NO_ROOM:
                walk.prefixes = False
            elif state is not Readiness.READY:
                aside.append((sequence, state is Readiness.COLD))
                walk.loads = walk.loads and state is not Readiness.COLD
                sequence.loaded = sequence.loaded or state is Readiness.BEGUN
            elif seat and key not in short and not self._pages.awaits(sequence):
                if self._takes_spare(sequence, held):
                    short.add(key)
                elif self._start(sequence):
                    admitted.append(sequence)
                    held[key] += 1
                else:
                    full = True
            elif place >= look_ahead:
                walk.pass_over(key)
        self._take_out(admitted, aside)
        return admitted

    def _take_out(self, admitted: list[Sequence], aside: list[tuple[Sequence, bool]]) -> None:
        for sequence, cold in aside:
            self._queue.set_aside(sequence, cold=cold)
        for sequence in admitted:
            self._queue.remove(sequence)
            self._served.start(sequence.request.share)
            self._pay_load(sequence)

    def _pay_load(self, sequence: Sequence) -> None:
        """Charge a load when its request stops waiting, once: charged before, whoever came meanwhile would pass it."""
        if sequence.loaded:
            self._charge(sequence.request.share, _LOAD)

    def _takes_spare(self, sequence: Sequence, held: Counter[str]) -> bool:
        """Whether it would take of the last pages, which are for keys that have fewer rows than another."""
        most = held[sequence.request.share]
        return most > 0 and most >= max(held.values()) and self._pages.lacks(sequence, self._spare_pages)

    def _held(self) -> Counter[str]:
        """How many rows and seats each key has."""
        return Counter(s.request.share for s in self.running.values())

    def _due(self) -> Callable[[str], float]:
        """What a key was served, and what of it has rows but is still to be computed."""
        owed: Counter[str] = Counter()
        for sequence in self.running.values():
            owed[sequence.request.share] += cost(sequence)
        return lambda key: self._served[key] + owed[key]

    def _start(self, sequence: Sequence) -> bool:
        """Give a row and its pages; False if there are not enough pages."""
        if not self._pages.claim(sequence):
            return False
        self.running[sequence.number] = sequence
        self.running_tokens += sequence.request.positions
        sequence.turn = self._turn
        return True

    def plan(self) -> Plan:
        """The next step: rows that decode get a token each, as many as there may be, and prompts the rest.

        Rows that decode come first, then prompts of the least served, and the budget is whole, unless a key is over its
        share. Then steps are small, since one that takes long is long for every row of it, and who is over comes last
        and gets what is left of a third of it.

        Whoever has a seat moves, whatever its key was served: a row that decodes waits no longer than a few steps,
        and in each step a little of the prompt that has waited longest is read first, if it has waited for long.
        """
        over, due = self._over(), self._overdue()
        budget = min(self._step_tokens, _SMALL_STEP * self._rows) if over else self._step_tokens
        rest = min(self._step_tokens, _LEFT_OVER * self._rows)
        little = min(self._chunk_tokens, self._rows)

        def place(s: Sequence) -> tuple[bool, int, float, bool, int, int]:
            reading, key = s.prompt_left > 0, s.request.share
            group = 2 if key in over else int(reading)
            # Of one key, prompts go by arrival, so that one ends before the next begins; rows that decode take turns.
            last = (0, s.number) if reading else (s.turn, len(s.generated))
            return s.number not in due, group, self._served[key], reading, *last

        decode: list[Sequence] = []
        chunks: list[Chunk] = []
        taken = 0
        for sequence in sorted(self.running.values(), key=place):
            first = sequence.number in due
            left = (rest if sequence.request.share in over and not first else budget) - taken
            if left <= 0:
                continue
            if sequence.prompt_left:
                size = min(sequence.prompt_left, little if first else self._chunk_tokens, left)
                chunks.append(Chunk(sequence, sequence.computed, sequence.computed + size))
                taken += size
            elif len(decode) < self._rows:
                decode.append(sequence)
                taken += 1
        return Plan(tuple(decode), tuple(chunks))

    def _over(self) -> set[str]:
        """Keys that hold more than their share of all seats, and a good deal more than the others, while rows are scarce."""
        held = self._held()
        if len(self.running) < self._rows:
            return set()
        share = (self._rows + self._spare) / len(held)
        bound = max(share, self._rows / _A_LOT, max(held.values()) / 2)
        return {key for key, rows in held.items() if rows > bound}

    def _overdue(self) -> set[int]:
        """Rows whose turn it is: all that decode and were passed over so often, and one prompt."""
        rows = self.running.values()
        late = {s.number for s in rows if not s.prompt_left and self._turn - s.turn >= _MOST_PASSED_OVER}
        oldest = min((s for s in rows if s.prompt_left), key=lambda s: s.turn, default=None)
        if oldest is not None and self._turn - oldest.turn >= _MOST_UNREAD:
            late.add(oldest.number)
        return late

    def advance(self, plan: Plan) -> None:
        """Note that a step was computed, and charge its tokens to their keys."""
        self._turn += 1
        for sequence in plan.decode:
            sequence.computed += 1
            sequence.turn = self._turn
            self._charge(sequence.request.share, 1)
        for chunk in plan.chunks:
            chunk.sequence.computed = chunk.stop
            chunk.sequence.turn = self._turn
            self._charge(chunk.sequence.request.share, chunk.stop - chunk.start)

    def _charge(self, key: str, tokens: int) -> None:
        self._served.charge(key, tokens)
        self._queue.rank(key)
