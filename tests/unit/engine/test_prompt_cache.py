"""The bookkeeping of kept pages, against a memory that only remembers what was written where."""

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from prefix_engine.pages import PageAllocator, pages_for
from prefix_engine.prompt_cache import PromptCache
from prefix_engine.request import Request
from prefix_engine.sequence import Sequence

PAGE, PAGES, KEEP_S = 2, 9, 10.0
ALICE, BOB = ("acme", "alice"), ("acme", "bob")


def row(number, prompt, tokens=3, reuse=ALICE, prefix_id="p", **settings):
    return Sequence(
        number, Request(tuple(prompt), tokens, None, prefix_id=prefix_id, reuse=reuse, **settings)
    )


class Memory:
    """Pages that hold, for each of their positions, whose text it is and all of that text up to there."""

    def __init__(self, pages=PAGES, keep_s=KEEP_S):
        self.written = {page: {} for page in range(pages)}
        self.pages = PageAllocator(range(pages))
        self.cache = PromptCache(self.pages, PAGE, self.zero, keep_s)

    def zero(self, pages):
        for page in pages:
            self.written[page].clear()

    def text(self, sequence, place):
        tokens = (*sequence.request.prompt, *sequence.generated)[: place + 1]
        return sequence.request.reuse, sequence.request.prefix_id, tokens

    def compute(self, sequence, upto):
        for place in range(sequence.computed, upto):
            page, at = sequence.pages[place // PAGE], place % PAGE
            assert at not in self.written[page], "written twice, or into a page that others read"
            self.written[page][at] = self.text(sequence, place)
        sequence.computed = upto

    def answer(self, sequence):
        """Compute a row to its end, as the loop does."""
        self.compute(sequence, len(sequence.request.prompt))
        for token in range(sequence.request.max_tokens):
            if sequence.generated:
                self.compute(sequence, sequence.computed + 1)
            sequence.generated.append(token)
            if token == 0:
                self.cache.keep(sequence)
        self.cache.keep(sequence)
        self.cache.release(sequence)

    def serve(self, sequence):
        """Claim and answer; tokens that were found."""
        assert self.cache.claim(sequence)
        self.answer(sequence)
        return sequence.cached


@pytest.fixture
def memory():
    return Memory(pages=40)


def test_the_same_prompt_again_computes_its_last_page_only(memory):
    assert memory.serve(row(1, range(9))) == 0
    assert memory.serve(row(2, range(9))) == 8
    assert memory.serve(row(3, range(8))) == 6  # the last token is computed, for its logits
    assert (memory.cache.hits, memory.cache.tokens_saved) == (2, 14)


def test_a_common_beginning_is_found_as_far_as_it_goes(memory):
    memory.serve(row(1, [1, 2, 3, 4, 5, 6, 7]))
    assert memory.serve(row(2, [1, 2, 3, 4, 9, 6, 7])) == 4
    assert memory.serve(row(3, [1, 9, 3, 4, 5, 6, 7])) == 0
    assert memory.serve(row(4, [3, 4, 5, 6, 7])) == 0


def test_an_answer_is_found_as_the_beginning_of_the_next_prompt(memory):
    memory.serve(row(1, [7, 7, 7], tokens=6))
    assert memory.serve(row(2, [7, 7, 7, 0, 1, 2, 3, 4, 5, 6, 6])) == 8  # the sixth token was never fed back


@pytest.mark.parametrize(
    "other",
    [
        {"reuse": BOB},
        {"reuse": ("acme", "alice", "")},
        {"reuse": ("other", "alice")},
        {"reuse": None},
        {"prefix_id": "q"},
        {"prefix_id": None},
    ],
)
def test_nothing_is_found_by_another_caller_or_behind_another_prefix(memory, other):
    memory.serve(row(1, range(9)))
    assert memory.serve(row(2, range(9), **other)) == 0
    assert memory.serve(row(3, range(9))) == 8


def test_a_request_without_reuse_leaves_nothing(memory):
    memory.serve(row(1, range(9), reuse=None))
    assert memory.pages.used == memory.cache.idle == 0
    assert memory.serve(row(2, range(9), reuse=None)) == 0


def test_a_prompt_that_is_scored_is_computed_whole(memory):
    memory.serve(row(1, range(9)))
    assert memory.serve(row(2, range(9), echo=True, logprobs=0)) == 0
    assert memory.serve(row(3, range(9), echo=True)) == 8


def test_what_nobody_read_for_its_time_is_zeroed(memory):
    memory.cache.expire(0.0)
    memory.serve(row(1, range(9)))
    memory.serve(row(2, range(5, 14)))
    memory.cache.expire(KEEP_S - 1)
    memory.serve(row(3, range(9)))
    memory.cache.expire(KEEP_S)
    assert memory.serve(row(4, range(9))) == 8
    assert memory.serve(row(5, range(5, 14))) == 0
    memory.cache.expire(3 * KEEP_S)
    assert memory.pages.used == 0
    assert not any(memory.written.values())
    assert not memory.cache._roots


def test_the_end_of_the_oldest_text_makes_room():
    memory = Memory(pages=9)
    memory.serve(row(1, [1] * 9, tokens=1))
    memory.serve(row(2, [2] * 9, tokens=1))
    assert memory.cache.idle == 8
    assert memory.serve(row(3, [3] * 5, tokens=1)) == 0  # 3 pages, of which 1 was free
    found = [memory.cache._found(row(0, [token] * 9).request) for token in (1, 2, 3)]
    assert [len(path) for path in found] == [2, 4, 2]


def test_pages_that_a_row_reads_are_not_taken_from_it():
    memory = Memory(pages=6)
    memory.serve(row(1, [1] * 9, tokens=1))
    reader = row(2, [1] * 9, tokens=1)
    assert memory.cache.claim(reader)
    assert reader.cached == 8
    assert not memory.cache.claim(row(3, [3] * 5, tokens=1))
    assert memory.cache.claim(row(4, [3], tokens=1))
    memory.answer(reader)


def test_a_dropped_text_is_zeroed_when_its_last_reader_ends(memory):
    memory.serve(row(1, range(9)))
    readers = [row(number, range(9)) for number in (2, 3)]
    for reader in readers:
        assert memory.cache.claim(reader)
    memory.cache.forget({"alice"})
    assert memory.serve(row(4, range(9))) == 0
    memory.answer(readers[0])
    assert memory.written[readers[1].pages[0]]
    memory.answer(readers[1])
    assert memory.pages.used == 0
    assert not any(memory.written.values())
    assert memory.serve(row(5, range(9))) == memory.serve(row(6, range(9))) == 0  # for good


def test_what_a_row_adds_to_a_dropped_text_is_not_kept(memory):
    memory.serve(row(1, range(9)))
    reader = row(2, range(9), tokens=6)
    assert memory.cache.claim(reader)
    memory.cache.drop({"p"})
    memory.answer(reader)
    assert memory.pages.used == 0
    assert not any(memory.written.values())


@pytest.mark.parametrize(
    ("prompt", "settings", "waits"),
    [
        (range(9), {}, True),
        (range(12), {}, True),
        ([0, 1, 2, 3, 4, 9, 9, 9, 9], {}, True),  # 4 pages of its own, 2 of them alike
        ([0, 1, 2, 3, 9, 9, 9, 9, 9, 9, 9], {}, False),
        ([0, 1, 2], {}, False),  # it is done sooner by itself
        ([9, *range(9)], {}, False),
        (range(9), {"reuse": BOB}, False),
        (range(9), {"reuse": None}, False),
        (range(9), {"prefix_id": None}, False),
        (range(9), {"echo": True, "logprobs": 0}, False),
    ],
)
def test_a_request_waits_for_whoever_computes_half_of_its_prompt_and_no_longer(
    memory, prompt, settings, waits
):
    first, second = row(1, range(9)), row(2, prompt, **settings)
    assert not memory.cache.awaits(second)
    assert memory.cache.claim(first)
    assert memory.cache.awaits(second) == waits
    memory.answer(first)
    assert not memory.cache.awaits(second)
    assert not memory.cache._beginnings._rows


@pytest.mark.parametrize(
    "settings", [{"reuse": BOB}, {"reuse": None}, {"tokens": 0, "echo": True}], ids=["gone", "none", "scored"]
)
def test_nobody_waits_for_a_prompt_that_will_not_be_kept(memory, settings):
    memory.cache.forget({"bob"})
    assert memory.cache.claim(row(1, range(9), **settings))
    assert not memory.cache.awaits(row(2, range(9), **settings))


def test_it_knows_behind_which_prefixes_texts_are_kept(memory):
    for reuse in (ALICE, BOB):
        memory.serve(row(1, range(9), reuse=reuse))
    assert memory.cache.holds("p")
    assert not memory.cache.holds("q")
    memory.cache.forget({"alice"})
    assert memory.cache.holds("p")
    memory.cache.drop({"p"})
    assert not memory.cache.holds("p")


class Bookkeeping(RuleBasedStateMachine):
    """Rows of several callers in a memory for a few of them, in any order; everything is checked at each step."""

    rows = Bundle("rows")

    @initialize()
    def begin(self):
        self.memory = Memory()
        self.running, self.number, self.now = {}, 0, 0.0
        self.gone = set()

    @property
    def cache(self):
        return self.memory.cache

    @rule(
        target=rows,
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=9),
        tokens=st.integers(1, 5),
        reuse=st.sampled_from([ALICE, ALICE, BOB, None]),
        prefix_id=st.sampled_from(["p", "p", "q", None]),
    )
    def claim(self, prompt, tokens, reuse, prefix_id):
        self.number += 1
        sequence = row(self.number, prompt, tokens, reuse, prefix_id)
        needed = pages_for(sequence.slots_needed, PAGE)
        read = {page for other in self.running.values() for page in other.pages}
        if not self.cache.claim(sequence):
            found = {kept.page for kept in self.cache._found(sequence.request)}
            assert needed - len(found) > PAGES - len(read | found)
            return multiple()
        self.running[sequence.number] = sequence
        assert len(sequence.pages) == needed
        assert sequence.cached % PAGE == 0
        assert sequence.cached == sequence.computed < len(prompt)
        assert not sequence.cached or reuse
        for place in range(sequence.cached):
            told = self.memory.written[sequence.pages[place // PAGE]][place % PAGE]
            assert told == self.memory.text(sequence, place)
        own = sequence.pages[sequence.cached // PAGE :]
        assert not read & set(own)
        assert not any(self.memory.written[page] for page in own)
        return sequence

    @rule(sequence=rows, upto=st.integers(1, 9))
    def prefill(self, sequence, upto):
        if sequence.number in self.running and sequence.prompt_left:
            prompt = len(sequence.request.prompt)
            self.memory.compute(sequence, max(sequence.computed, min(upto, prompt)))
            if not sequence.prompt_left:
                sequence.generated.append(0)
                self.cache.keep(sequence)

    @rule(sequence=rows, token=st.integers(0, 1))
    def decode(self, sequence, token):
        room = len(sequence.generated) < sequence.request.max_tokens
        if sequence.number in self.running and sequence.generated and room:
            self.memory.compute(sequence, sequence.computed + 1)
            sequence.generated.append(token)

    @rule(sequence=consumes(rows), whole=st.booleans())
    def end(self, sequence, whole):
        if self.running.pop(sequence.number, None) is not None:
            if whole and sequence.generated:
                self.cache.keep(sequence)
            self.cache.release(sequence)

    @rule(prefix_id=st.sampled_from(["p", "q", None]))
    def drop(self, prefix_id):
        self.cache.drop({prefix_id})
        assert not any(key[1] == prefix_id for key in self.cache._roots)

    @rule(someone=st.sampled_from(["alice", "bob"]))
    def forget(self, someone):
        self.cache.forget({someone})
        self.gone.add(someone)

    @rule(passed=st.sampled_from([1.0, 6.0]))
    def expire(self, passed):
        self.now += passed
        self.cache.expire(self.now)

    @rule()
    def clear(self):
        self.cache.clear()
        assert self.cache.idle == 0

    @invariant()
    def every_page_has_one_place(self):
        kept, cache = self.tree(), self.cache
        pages = [one.page for one in kept]
        assert len(pages) == len(set(pages))
        read = {page for sequence in self.running.values() for page in sequence.pages}
        free = set(self.memory.pages._free)
        assert not free & (set(pages) | read)
        assert len(free) + len(set(pages) | read) == PAGES
        assert not any(self.memory.written[page] for page in free)
        assert cache.idle == len(set(pages) - read - {k.page for k in kept if k.readers})

    @invariant()
    def readers_are_counted(self):
        paths = list(self.cache._paths.values())
        for one in self.tree():
            assert one.readers == sum(one in path for path in paths)
            assert (one in self.cache._idle) == (one.readers == 0)
            assert not one.dropped

    @invariant()
    def what_is_kept_is_what_it_is_found_by(self):
        for one in self.tree():
            tokens, at = (), one
            while at.parent is not None:
                tokens, at = (*at.tokens, *tokens), at.parent
            text = (*one.key, tokens)
            assert self.memory.written[one.page][PAGE - 1] == text
            assert self.gone.isdisjoint(one.key[0])

    @invariant()
    def what_stands_behind_makes_room_first(self):
        order = list(self.cache._idle)
        for place, one in enumerate(order):
            assert all(child in order[:place] for child in one.children.values())
            assert place == 0 or order[place - 1].idle_since <= one.idle_since
            assert self.now - one.idle_since < KEEP_S

    def tree(self):
        found, left = [], list(self.cache._roots.values())
        assert all(root.children for root in left)
        while left:
            one = left.pop()
            found += [] if one.parent is None else [one]
            left += one.children.values()
        return found

    def teardown(self):
        for sequence in self.running.values():
            self.cache.release(sequence)
        self.cache.clear()
        assert self.memory.pages.free == PAGES
        assert not any(self.memory.written.values())


Bookkeeping.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestBookkeeping = Bookkeeping.TestCase
