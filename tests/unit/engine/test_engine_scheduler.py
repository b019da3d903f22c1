import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_engine.pages import PageAllocator, pages_for
from prefix_engine.prompt_cache import PromptCache
from prefix_engine.request import Request
from prefix_engine.scheduler import Readiness, Scheduler
from prefix_engine.sequence import Sequence

PAGE = 4


@dataclass(frozen=True)
class Job:
    share: str
    prompt: int
    tokens: int
    arrives: int
    caller: str | None  # who may reuse it; all prompts begin alike
    loads_for: int  # steps until its prefix is there; 0 is a base row
    leaves_after: int | None  # steps after its arrival


jobs = st.builds(
    Job,
    share=st.sampled_from("abc"),
    prompt=st.integers(1, 30),
    tokens=st.integers(0, 6),
    arrives=st.integers(0, 15),
    caller=st.sampled_from([None, "x", "y"]),
    loads_for=st.sampled_from([0, 0, 1, 5]),
    leaves_after=st.one_of(st.none(), st.none(), st.integers(0, 10)),
)


def sequence(number, share="a", prompt=3, tokens=2, prefix_id=None, reuse=None):
    request = Request((1,) * prompt, tokens, None, prefix_id=prefix_id, share=share, reuse=reuse)
    return Sequence(number, request)


def ready(_):
    return Readiness.READY


class Machine:
    """Carries out a scheduler's plans without a model, and checks each of them."""

    def __init__(self, rows, step_tokens, chunk, pages, keep_s=0, longest=0):
        self.rows, self.step_tokens, self.chunk, self.keep_s = rows, step_tokens, chunk, keep_s
        self.allocator = PageAllocator(range(pages))
        self.cache = PromptCache(self.allocator, PAGE, lambda _: None, keep_s)
        self.scheduler = Scheduler(rows, step_tokens, chunk, self.cache, longest)
        self.finished = []

    def step(self, readiness=ready):
        self.scheduler.admit(readiness, look_ahead=4)
        plan = self.scheduler.plan()
        self.check(plan)
        self.scheduler.advance(plan)
        for s in [*plan.decode, *(c.sequence for c in plan.chunks if c.ends_prompt)]:
            if s.request.max_tokens:
                s.generated.append(0)
                self.cache.keep(s)
            if len(s.generated) >= s.request.max_tokens:
                self.end(s)
                self.finished.append(s.number)
        return plan

    def check(self, plan):
        running = self.scheduler.running.values()
        keys = Counter(s.request.share for s in running)
        assert len(running) <= (self.rows + self.rows // 2 if len(keys) > 1 else self.rows)
        most = max(keys.values(), default=0)
        over = len(running) >= self.rows and most > self.rows / 4
        over = over and most * len(keys) > self.rows + self.rows // 2
        assert plan.tokens <= (min(self.step_tokens, 6 * self.rows) if over else self.step_tokens)
        decoding = {s for s in running if not s.prompt_left}
        assert set(plan.decode) <= decoding
        assert over or len(plan.decode) == min(self.rows, len(decoding))
        for chunk in plan.chunks:
            assert 0 < chunk.stop - chunk.start <= self.chunk
            assert chunk.start == chunk.sequence.computed
        held = [page for s in running for page in s.pages]
        if not self.keep_s:
            assert len(held) == len(set(held)) == self.allocator.used
        for s in running:
            assert len(s.pages) == pages_for(s.slots_needed, PAGE)
        assert plan.tokens or not running

    def end(self, s):
        self.scheduler.remove(s)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(jobs, min_size=1, max_size=20),
    st.integers(1, 5),
    st.integers(0, 20),
    st.integers(1, 10),
    st.integers(9, 30),
    st.sampled_from([0, 1]),
)
def test_budgets_hold_rows_decode_every_step_and_every_request_ends(jobs, rows, spare, chunk, pages, keep_s):
    machine = Machine(rows, rows + spare, chunk, pages, keep_s)
    sequences = [
        sequence(
            i,
            job.share,
            job.prompt,
            job.tokens,
            "p" if job.loads_for else None,
            job.caller and (job.caller,),
        )
        for i, job in enumerate(jobs)
    ]
    left = set()
    for now in range(2000):
        if len(left) + len(machine.finished) == len(jobs):
            break
        for i, job in enumerate(jobs):
            if job.arrives == now:
                machine.scheduler.add(sequences[i])
            if (
                job.leaves_after is not None
                and now == job.arrives + job.leaves_after
                and i not in machine.finished
            ):
                machine.end(sequences[i])
                left.add(i)
        machine.scheduler.wake("p")
        machine.step(
            lambda s, now=now: (
                Readiness.READY
                if now >= jobs[s.number].arrives + jobs[s.number].loads_for
                else Readiness.LOADING
            )
        )
    assert sorted([*machine.finished, *left]) == list(range(len(jobs)))
    assert machine.allocator.used == machine.cache.idle
    assert keep_s or not machine.cache.idle
    assert machine.scheduler.waiting == 0


def test_requests_of_one_key_start_in_the_order_of_their_arrival():
    machine = Machine(1, 8, 8, 100)
    for number in (3, 1, 2):
        machine.scheduler.add(sequence(number))
    for _ in range(10):
        machine.step()
    assert machine.finished == [3, 1, 2]


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 40), st.integers(0, 12))
def test_a_newcomer_does_not_wait_for_the_queue_of_a_busy_key(queued, prompt, tokens):
    machine = Machine(1, 64, 64, 100)
    for number in range(queued):
        machine.scheduler.add(sequence(number, "busy", prompt, tokens))
    machine.step()
    machine.scheduler.add(sequence(1000, "newcomer", prompt, tokens))
    while 1000 not in machine.finished:
        machine.step()
    assert len(machine.finished) <= 3


def test_two_busy_keys_get_equal_shares_of_tokens_whatever_their_requests_look_like():
    machine = Machine(4, 64, 16, 1000)
    for number in range(400):
        machine.scheduler.add(sequence(number, "long", 40, 20))
        machine.scheduler.add(sequence(1000 + number, "short", 4, 2))
    served = Counter()
    for _ in range(200):
        plan = machine.step()
        for s in plan.decode:
            served[s.request.share] += 1
        for chunk in plan.chunks:
            served[chunk.sequence.request.share] += chunk.stop - chunk.start
    assert 0.75 < served["long"] / served["short"] < 1.33


def test_staying_away_saves_up_no_service():
    machine = Machine(1, 64, 64, 100)
    for number in range(50):
        machine.scheduler.add(sequence(number, "busy", 8, 4))
    for _ in range(100):
        machine.step()
    done = len(machine.finished)
    for number in range(100, 150):
        machine.scheduler.add(sequence(number, "back", 8, 4))
    for _ in range(60):
        machine.step()
    since = machine.finished[done:]
    busy = sum(number < 100 for number in since)
    assert abs(busy - (len(since) - busy)) <= 2


def test_a_trickle_saves_up_no_service_and_lowers_nobodys_start():
    machine = Machine(4, 64, 64, 1000)
    number = iter(range(100_000))
    machine.scheduler.add(sequence(next(number), "trickle", 8, 500))
    for _ in range(400):  # "busy" waits all the time, "trickle" has one row all the time
        while machine.scheduler.waiting < 20:
            machine.scheduler.add(sequence(next(number), "busy", 8, 4))
        machine.step()
    served = machine.scheduler._served
    assert served["trickle"] < served["busy"] / 2
    machine.scheduler.add(sequence(next(number), "newcomer", 8, 4))
    for _ in range(50):
        machine.scheduler.add(sequence(next(number), "trickle", 8, 4))
    assert served["newcomer"] == served["busy"]
    assert served["trickle"] == served["busy"]


def test_a_newcomer_finds_pages_though_one_key_could_take_them_all():
    machine = Machine(8, 64, 64, 32, longest=8)
    for number in range(20):  # two of four pages each: the rows would be there, the pages not
        machine.scheduler.add(sequence(number, "heavy", 4, 13))
    machine.step()
    assert len(machine.scheduler.running) == 7
    machine.scheduler.add(sequence(100, "newcomer", 4, 13))
    machine.step()
    assert 100 in machine.scheduler.running


def test_a_key_that_is_short_of_pages_is_looked_ahead_at_and_its_order_stands():
    machine, asked = Machine(8, 64, 64, 32, longest=8), []
    for number in range(7):
        machine.scheduler.add(sequence(number, "heavy", 4, 13))
    machine.step()
    machine.scheduler.add(sequence(7, "heavy", 4, 13, "first"))
    for number in range(8, 12):  # they would fit into what is left for others, or find room before the first
        machine.scheduler.add(sequence(number, "heavy", 1, 1, f"later-{number}"))
    machine.step(lambda s: asked.append(s.number) or Readiness.READY)
    assert asked[:4] == [7, 8, 9, 10]
    assert set(machine.scheduler.running) == set(range(7))
    while machine.scheduler.waiting:
        machine.step()
    assert machine.finished.index(0) < machine.finished.index(8)


def test_one_key_alone_gets_its_largest_request_whatever_is_kept_for_others():
    machine = Machine(4, 64, 64, 8, longest=8)
    machine.scheduler.add(sequence(1, "alone", 20, 13))
    machine.step()
    assert 1 in machine.scheduler.running


def test_a_request_whose_prefix_loads_blocks_nobody_not_even_behind_a_long_queue_of_such():
    machine = Machine(2, 8, 8, 100)
    for number in range(200):
        machine.scheduler.add(sequence(number, prefix_id="cold"))
    machine.scheduler.add(sequence(999))
    for _ in range(3):
        machine.step(lambda s: Readiness.LOADING if s.request.prefix_id else Readiness.READY)
    assert machine.finished == [999]


class Shelf:
    """Prefixes without a model: `loads` at once, each done when the test says; forgets as it is told."""

    def __init__(self, scheduler, loads):
        self.scheduler, self.loads = scheduler, loads
        self.there, self.loading, self.asked = set(), {}, []

    def readiness(self, s):
        self.asked.append(s.number)
        prefix_id = s.request.prefix_id
        if prefix_id is None or prefix_id in self.there:
            return Readiness.READY
        if prefix_id not in self.loading and len(self.loading) >= self.loads:
            return Readiness.COLD
        if prefix_id in self.loading:
            return Readiness.LOADING
        self.loading[prefix_id] = s.request.share
        return Readiness.BEGUN

    def settle(self, prefix_id, *, kept=True):
        del self.loading[prefix_id]
        if kept:
            self.there.add(prefix_id)
        self.scheduler.wake(prefix_id)


visits = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from([None, *"pqrstuvw"]), st.integers(0, 20)), max_size=40
)


@settings(max_examples=300, deadline=None)
@given(visits, st.integers(1, 4), st.integers(1, 3), st.randoms(use_true_random=False))
def test_whatever_is_ready_starts_while_there_are_rows_and_everything_ends(visits, rows, loads, chance):
    machine = Machine(rows, rows + 8, 8, 1000)
    shelf = Shelf(machine.scheduler, loads)
    waiting = {}
    for now in range(3000):
        for number, (share, prefix_id, arrives) in enumerate(visits):
            if arrives == now:
                waiting[number] = sequence(number, share, prefix_id=prefix_id)
                machine.scheduler.add(waiting[number])
        if waiting and chance.random() < 0.05:
            left = waiting.pop(chance.choice(sorted(waiting)))
            machine.end(left)
            machine.finished.append(left.number)
        for prefix_id in [p for p in shelf.loading if chance.random() < 0.4]:
            shelf.settle(prefix_id, kept=chance.random() < 0.8)
        if shelf.there and chance.random() < 0.1:
            shelf.there.remove(chance.choice(sorted(shelf.there)))  # evicted
        free = rows - len(machine.scheduler.running)
        ready = [n for n, s in waiting.items() if s.request.prefix_id in {None, *shelf.there}]
        started = machine.scheduler.admit(shelf.readiness, look_ahead=4)
        assert len(started) >= min(free, len(ready))
        for s in started:
            del waiting[s.number]
        assert machine.scheduler.waiting == len(waiting)
        if len(started) < free and len(shelf.loading) < loads:  # nothing is left that could load
            assert {s.request.prefix_id for s in waiting.values()} <= {*shelf.loading}
        machine.step(shelf.readiness)
        waiting = {n: s for n, s in waiting.items() if n not in machine.scheduler.running}
        waiting = {n: s for n, s in waiting.items() if n not in machine.finished}
        if now > 20 and not waiting and not machine.scheduler.running:
            break
    assert sorted(machine.finished) == list(range(len(visits)))
    assert machine.allocator.used == 0
    assert not machine.scheduler._queue._aside


def test_thousands_of_cold_requests_are_not_looked_at_in_every_step():
    machine = Machine(2, 8, 8, 100)
    shelf = Shelf(machine.scheduler, loads=4)
    for number in range(4000):
        machine.scheduler.add(sequence(number, prefix_id=f"cold-{number}"))
    machine.step(shelf.readiness)
    for number in range(5000, 5050):
        machine.scheduler.add(sequence(number))
        shelf.asked.clear()
        machine.step(shelf.readiness)
        assert len(shelf.asked) <= 3  # the newcomer, and a cold one that might have begun to load
    assert set(range(5000, 5040)) <= set(machine.finished)
    for _ in range(200):
        shelf.settle(next(iter(shelf.loading)))
        shelf.asked.clear()
        machine.step(shelf.readiness)
        assert len(shelf.asked) <= 8
    assert len(machine.finished) > 200 / 4


def test_thousands_that_await_one_prompt_are_not_looked_at_in_every_step():
    machine = Machine(4, 16, 8, 2000, keep_s=1)
    for number in range(2000):
        machine.scheduler.add(sequence(number, "many", prompt=41, reuse=("x",)))
    machine.scheduler.add(sequence(2000, "other", prompt=41))
    asked = []

    def readiness(s):
        asked.append(s.number)
        return Readiness.READY

    machine.step(readiness)
    assert set(machine.scheduler.running) == {0, 2000}
    assert len(asked) <= 4 + 2
    for _ in range(3):
        asked.clear()
        machine.step(readiness)
        assert len(asked) <= 4 + 2
    for _ in range(6000):
        machine.step()
    assert len(machine.finished) == 2001


def test_loads_begin_in_fair_order_whatever_stands_before():
    machine = Machine(1, 8, 8, 100)
    shelf = Shelf(machine.scheduler, loads=1)
    for number in range(100):
        machine.scheduler.add(sequence(number, "heavy", prefix_id=f"heavy-{number}"))
    machine.step(shelf.readiness)
    machine.scheduler.add(sequence(200, "light", prefix_id="light"))
    begun = []
    for _ in range(4):
        begun += list(shelf.loading)
        shelf.settle(begun[-1])
        machine.step(shelf.readiness)
    assert "light" in begun[:3]


def test_a_cold_request_wakes_when_another_brought_its_prefix():
    machine = Machine(4, 16, 8, 100)
    shelf = Shelf(machine.scheduler, loads=1)
    for number in range(50):
        machine.scheduler.add(sequence(number, "heavy", prefix_id=f"p-{number}"))
    machine.step(shelf.readiness)
    shelf.loading["p-49"] = 1  # begun for somebody else
    shelf.settle("p-49")
    machine.step(shelf.readiness)
    assert 49 in machine.scheduler.running


def test_without_room_for_a_prefix_no_other_prefix_is_asked_about():
    machine = Machine(4, 64, 64, 100)
    for number in range(1000):
        machine.scheduler.add(sequence(number, prefix_id="no room"))
    machine.scheduler.add(sequence(2000))
    asked = []

    def no_room(s):
        asked.append(s.number)
        return Readiness.NO_ROOM if s.request.prefix_id else Readiness.READY

    assert [s.number for s in machine.scheduler.admit(no_room, look_ahead=4)] == [2000]
    assert asked == [0, 2000]


def test_one_that_awaits_anothers_prompt_lets_others_pass_and_is_charged_for_what_it_computes():
    machine = Machine(4, 8, 4, 100, keep_s=1)
    for number in range(3):
        machine.scheduler.add(sequence(number, "twins", prompt=17, reuse=("x",)))
    machine.scheduler.add(sequence(3, "other", prompt=17))
    machine.step()
    assert set(machine.scheduler.running) == {0, 3}
    assert machine.scheduler._served.counters == {"twins": 4, "other": 4}
    assert [machine.scheduler._due()(key) for key in ("twins", "other")] == [17, 17]
    for _ in range(20):
        machine.step()
    assert sorted(machine.finished) == [0, 1, 2, 3]
    assert machine.cache.tokens_saved == 2 * 16


def test_a_large_request_is_not_starved_by_small_ones_that_would_fit():
    machine = Machine(4, 64, 64, 10)
    machine.scheduler.add(sequence(0, prompt=4, tokens=8))
    machine.step()
    machine.scheduler.add(sequence(1, prompt=36, tokens=4))
    for number in range(2, 200):
        machine.scheduler.add(sequence(number, prompt=4, tokens=8))
    for _ in range(20):
        machine.step()
    assert machine.finished[:2] == [0, 1]


def test_rows_with_prefixes_let_a_prefix_that_finds_no_room_go_first():
    machine = Machine(4, 64, 64, 100)
    for number, prefix_id in enumerate(["no room", "resident", None]):
        machine.scheduler.add(sequence(number, prefix_id=prefix_id))
    admitted = machine.scheduler.admit(
        lambda s: Readiness.NO_ROOM if s.request.prefix_id == "no room" else Readiness.READY, look_ahead=4
    )
    assert [s.number for s in admitted] == [2]


def test_counters_of_absent_keys_do_not_pile_up():
    scheduler = Machine(1, 8, 8, 10).scheduler
    steady = sequence(0, "steady")
    scheduler.add(steady)
    for number in range(1, 5000):
        passing = sequence(number, f"key-{number}")
        scheduler.add(passing)
        scheduler.remove(passing)
    assert len(scheduler._served.counters) < 2000
    assert len(scheduler._served._least) < 2000


def test_scheduling_starts_without_torch():
    code = "import sys, prefix_engine.scheduler, prefix_engine.request; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_newcomer_gets_a_seat_and_the_next_step_though_all_rows_are_a_busy_keys():
    machine = Machine(8, 64, 16, 1000)
    for number in range(100):
        machine.scheduler.add(sequence(number, "busy", 40, 50))
    for _ in range(20):
        machine.step()
    assert len(machine.scheduler.running) == 8  # alone, it never has more than the rows
    machine.scheduler.add(sequence(1000, "newcomer", 16, 5))
    plan = machine.step()
    assert plan.chunks[0].sequence.number == 1000
    assert len(plan.chunks[0].sequence.generated) == 1
    for _ in range(4):
        assert 1000 in {s.number for s in machine.step().decode}
    assert 1000 in machine.finished


def test_a_busy_keys_prompts_make_no_long_steps_for_others():
    machine = Machine(8, 512, 128, 1000)
    machine.scheduler.add(sequence(1000, "light", 4, 100))
    machine.step()
    for number in range(100):
        machine.scheduler.add(sequence(number, "busy", 400, 2))
    for _ in range(60):
        plan = machine.step()
        assert 1000 in {s.number for s in plan.decode}
        assert plan.tokens <= 2 * 8


def test_rows_take_turns_while_others_have_spare_seats():
    machine = Machine(8, 64, 16, 2000)
    for number in range(100):
        machine.scheduler.add(sequence(number, "busy", 2, 400))
    machine.step()
    for number in range(4):
        machine.scheduler.add(sequence(1000 + number, f"light-{number}", 2, 200))
    machine.step()
    decoded = Counter()
    for _ in range(90):
        plan = machine.step()
        assert len(plan.decode) == 8
        decoded.update(s.number for s in plan.decode)
    assert all(decoded[1000 + number] == 90 for number in range(4))
    busy = [count for number, count in decoded.items() if number < 1000]
    assert len(busy) == 8
    assert max(busy) - min(busy) <= 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(1, 60), st.integers(1, 200), st.integers(0, 150)),
        min_size=1,
        max_size=60,
    )
)
def test_whoever_has_a_seat_moves(visits):
    """Rows that decode within a few steps; prompts, of which one is overdue at a time, when their turn comes."""
    machine = Machine(4, 64, 16, 4000)
    since = {}
    for now in range(600):
        for number, (share, prompt, tokens, arrives) in enumerate(visits):
            if arrives == now:
                machine.scheduler.add(sequence(number, share, prompt, tokens))
        plan = machine.step()
        moved = {s.number for s in plan.decode} | {chunk.sequence.number for chunk in plan.chunks}
        for number, s in machine.scheduler.running.items():
            since[number] = 0 if number in moved else since.get(number, 0) + 1
            assert since[number] <= (32 + 6 * 8 if s.prompt_left else 6)


def test_a_tenant_with_two_requests_among_many_with_one_is_not_starved():
    machine = Machine(16, 512, 256, 10_000)
    for number in range(2):
        machine.scheduler.add(sequence(number, "two", 20, 900))
    following = iter(range(1000, 10_000))
    owner = {}

    def ask(key):
        number = next(following)
        owner[number] = key
        machine.scheduler.add(sequence(number, key, 20, 500))

    for tenant in range(22):
        ask(f"one-{tenant}")
    before = 0
    for _ in range(3000):
        machine.step()
        for number in machine.finished[before:]:
            if number >= 1000:
                ask(owner[number])
        before = len(machine.finished)
    assert {0, 1} <= set(machine.finished)


def test_prompts_of_one_key_are_read_one_after_the_other():
    machine = Machine(8, 32, 16, 1000)
    for number in range(8):
        machine.scheduler.add(sequence(number, "one", 48, 40))
    first = []
    for _ in range(60):
        first += [chunk.sequence.number for chunk in machine.step().chunks if chunk.ends_prompt]
    assert first == list(range(8))
    machine = Machine(8, 32, 16, 1000)
    for number in range(8):
        machine.scheduler.add(sequence(number, "one", 48, 40))
    for _ in range(3):
        machine.step()
    assert [s.prompt_left for s in machine.scheduler.running.values()][:2] == [0, 0]


@pytest.mark.parametrize("loads", [1, 4])
def test_who_asks_for_a_word_each_of_many_prefixes_does_not_take_all_loads(loads):
    machine = Machine(8, 64, 32, 1000)
    shelf = Shelf(machine.scheduler, loads)
    for number in range(200):
        machine.scheduler.add(sequence(number, "many", 1, 1, f"many-{number}"))
    for number in range(200, 240):
        machine.scheduler.add(sequence(number, "few", 30, 1, f"few-{number}"))
    begun = Counter()
    for _ in range(60):
        machine.step(shelf.readiness)
        begun.update(shelf.loading.values())
        for prefix_id in list(shelf.loading):
            shelf.settle(prefix_id)
    assert begun["few"] >= min(40, begun["many"] / 2)
