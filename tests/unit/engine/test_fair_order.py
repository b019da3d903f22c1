"""The order of a walk, and the floor of the counters, against what they are by definition."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_scheduler import Machine

from prefix_engine.request import Request
from prefix_engine.scheduler import Readiness
from prefix_engine.sequence import Sequence
from prefix_engine.served import Served
from prefix_engine.waiting import Waiting, cost

KEYS = "abcdef"
BASE, KNOWN, COLD, LOADING = "base", "known", "cold", "loading"


def sequence(number, share, prompt=3, prefix_id=None):
    return Sequence(number, Request((1,) * prompt, 2, None, prefix_id=prefix_id, share=share))


class ByDefinition:
    """Who waits, and in which order they are passed: all keys are looked at, each time."""

    def __init__(self):
        self.standing = {}  # number: sequence and where it stands, by arrival

    def walk(self, due, turns):
        """Numbers that a walk passes; before each, `turns` say what is closed or passed over from there on."""
        due, closed, shut, passed = dict(due), set(), set(), []
        firsts = {}
        for number, (s, where) in self.standing.items():
            if where is not LOADING:
                firsts.setdefault(s.request.share, number)
        left = {n: s for n, (s, where) in self.standing.items() if where is not LOADING}
        for turn in turns:
            able = [
                s
                for n, s in left.items()
                if self.standing[n][1] not in closed and s.request.share not in shut
            ]
            if not able:
                break
            key = min({s.request.share for s in able}, key=lambda key: (due[key], firsts[key], key))
            chosen = next(s for s in able if s.request.share == key)
            due[key] += cost(chosen)
            del left[chosen.number]
            passed.append(chosen.number)
            closed |= {"loads": {COLD}, "prefixes": {COLD, KNOWN}}.get(turn, set())
            if turn == "pass over":
                shut.add(key)
        return passed


def walked(waiting, due, turns):
    passed = []
    walk = waiting.walk(due.__getitem__)
    for turn, s in zip(turns, walk, strict=False):
        passed.append(s.number)
        if turn == "loads":
            walk.loads = False
        elif turn == "prefixes":
            walk.prefixes = False
        elif turn == "pass over":
            walk.pass_over(s.request.share)
    return passed


ACTS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "remove", "aside", "cold", "wake", "charge", "walk"]),
        st.integers(0, 1 << 30),
    ),
    max_size=60,
)
TURNS = st.lists(
    st.sampled_from(["go on", "go on", "go on", "loads", "prefixes", "pass over"]), min_size=1, max_size=30
)


@settings(max_examples=400, deadline=None)
@given(ACTS, TURNS)
def test_a_walk_passes_what_it_passes_by_definition(acts, turns):
    waiting, plain = Waiting(), ByDefinition()
    due = dict.fromkeys(KEYS, 0)
    for number, (act, choice) in enumerate([*acts, ("walk", 0)]):
        numbers = sorted(plain.standing)
        some = plain.standing[numbers[choice % len(numbers)]][0] if numbers else None
        if act == "add":
            prefix_id = [None, "p", "q", "r"][choice % 4]
            s = sequence(number, KEYS[choice // 4 % len(KEYS)], 1 + choice // 24 % 5, prefix_id)
            plain.standing[number] = (s, KNOWN if prefix_id else BASE)
            waiting.add(s)
        elif act == "charge":
            key = KEYS[choice % len(KEYS)]
            due[key] += choice // 8 % 7 - 2  # a row that ends early takes back what it owed
            waiting.rank(key)
        elif act == "walk":
            assert walked(waiting, due, turns) == plain.walk(due, turns)
        elif act == "wake":
            prefix_id = "pqr"[choice % 3]
            waiting.wake(prefix_id)
            for n, (s, _) in plain.standing.items():
                if s.request.prefix_id == prefix_id:
                    plain.standing[n] = (s, KNOWN)
        elif act == "remove" and some:
            del plain.standing[some.number]
            waiting.remove(some)
        elif act in {"aside", "cold"} and some and some.request.prefix_id:
            plain.standing[some.number] = (some, COLD if act == "cold" else LOADING)
            waiting.set_aside(some, cold=act == "cold")
    assert len(waiting) == len(plain.standing)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["come", "come", "start", "start", "leave", "charge"]), st.integers(0, 1 << 20)
        ),
        max_size=80,
    )
)
def test_the_floor_is_what_the_least_served_of_those_that_wait_was_served(acts):
    served, present, waiting, counters = Served(), Counter(), Counter(), Counter()
    last = None

    def floor():
        nobody = 0 if last is None else counters[last]
        return min((counters[k] for k in +waiting), default=nobody)

    for act, choice in acts:
        key = KEYS[choice % len(KEYS)]
        if act == "come":
            if not waiting[key]:
                counters[key] = max(counters[key], floor())
            present[key] += 1
            waiting[key] += 1
            served.come(key)
        elif waiting[key] and act == "start":
            waiting[key] -= 1
            last = key
            served.start(key)
        elif present[key] > waiting[key] and act == "leave":
            present[key] -= 1
            served.leave(key)
            if not present.total():
                counters.clear()
                last = None
        elif present[key] and act == "charge":
            counters[key] += choice // 8 % 50
            served.charge(key, choice // 8 % 50)
        assert served.floor == floor()
        assert {k: served[k] for k in +present} == {k: counters[k] for k in +present}


class Looks(dict):
    """Counts keys that are looked at."""

    count = 0

    def __getitem__(self, key):
        self.count += 1
        return super().__getitem__(key)


def test_a_step_does_not_look_at_thousands_of_keys_that_wait():
    machine = Machine(4, 16, 8, 400)
    for number in range(3000):
        prefix_id = f"cold-{number}" if number % 2 else None
        machine.scheduler.add(sequence(number, f"key-{number}", prefix_id=prefix_id))

    def cold(s):
        return Readiness.COLD if s.request.prefix_id else Readiness.READY

    for _ in range(3):  # the first walk puts all of them where they belong
        machine.step(cold)
    looks = machine.scheduler._served.counters = Looks(machine.scheduler._served.counters)
    for _ in range(20):
        machine.step(cold)
        machine.scheduler.add(sequence(len(looks) + 5000, f"late-{len(looks)}"))
    assert looks.count / 20 < 60
    assert not machine.scheduler._queue._stirred - {f"late-{len(looks) - 1}", *looks}
