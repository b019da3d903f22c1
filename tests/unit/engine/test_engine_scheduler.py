import subprocess
import sys
from collections import Counter
from dataclasses import dataclass

from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_engine.pages import PageAllocator, pages_for
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
    loads_for: int  # steps until its prefix is there; 0 is a base row
    leaves_after: int | None  # steps after its arrival


jobs = st.builds(
    Job,
    share=st.sampled_from("abc"),
    prompt=st.integers(1, 30),
    tokens=st.integers(0, 6),
    arrives=st.integers(0, 15),
    loads_for=st.sampled_from([0, 0, 1, 5]),
    leaves_after=st.one_of(st.none(), st.none(), st.integers(0, 10)),
)


def sequence(number, share="a", prompt=3, tokens=2, prefix_id=None):
    return Sequence(number, Request((1,) * prompt, tokens, None, prefix_id=prefix_id, share=share))


def ready(_):
    return Readiness.READY


class Machine:
    """Carries out a scheduler's plans without a model, and checks each of them."""

    def __init__(self, rows, step_tokens, chunk, pages):
        self.rows, self.step_tokens, self.chunk = rows, step_tokens, chunk
        self.allocator = PageAllocator(range(pages))
        self.scheduler = Scheduler(rows, step_tokens, chunk, self.allocator, PAGE)
        self.finished = []

    def step(self, readiness=ready):
        self.scheduler.admit(readiness, look_ahead=4)
        plan = self.scheduler.plan()
        self.check(plan)
        self.scheduler.advance(plan)
        for s in [*plan.decode, *(c.sequence for c in plan.chunks if c.ends_prompt)]:
            if s.request.max_tokens:
                s.generated.append(0)
            if len(s.generated) >= s.request.max_tokens:
                self.end(s)
                self.finished.append(s.number)
        return plan

    def check(self, plan):
        running = self.scheduler.running.values()
        assert len(running) <= self.rows
        assert plan.tokens <= self.step_tokens
        assert set(plan.decode) == {s for s in running if not s.prompt_left}
        for chunk in plan.chunks:
            assert 0 < chunk.stop - chunk.start <= self.chunk
            assert chunk.start == chunk.sequence.computed
        held = [page for s in running for page in s.pages]
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
)
def test_budgets_hold_rows_decode_every_step_and_every_request_ends(jobs, rows, spare, chunk, pages):
    machine = Machine(rows, rows + spare, chunk, pages)
    sequences = [
        sequence(i, job.share, job.prompt, job.tokens, "p" if job.loads_for else None)
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
        machine.step(
            lambda s, now=now: (
                Readiness.READY
                if now >= jobs[s.number].arrives + jobs[s.number].loads_for
                else Readiness.LOADING
            )
        )
    assert sorted([*machine.finished, *left]) == list(range(len(jobs)))
    assert machine.allocator.used == 0
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


def test_a_request_whose_prefix_loads_blocks_nobody_not_even_behind_a_long_queue_of_such():
    machine = Machine(2, 8, 8, 100)
    for number in range(200):
        machine.scheduler.add(sequence(number, prefix_id="cold"))
    machine.scheduler.add(sequence(999))
    for _ in range(3):
        machine.step(lambda s: Readiness.LOADING if s.request.prefix_id else Readiness.READY)
    assert machine.finished == [999]


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
    assert len(scheduler._served) < 2000


def test_scheduling_starts_without_torch():
    code = "import sys, prefix_engine.scheduler, prefix_engine.request; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
