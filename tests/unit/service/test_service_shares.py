"""What tenants share, and how long until there is room: pure counting, with a clock that is told the time."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.pace import Pace
from service.shares import Shares
from service.tickets import Demand, Tickets

ACTS = st.lists(st.tuples(st.integers(0, 4), st.integers(1, 40), st.booleans()), max_size=80)


@given(ACTS)
def test_the_bound_holds_and_a_newcomer_always_finds_room(acts):
    shares, taken = Shares(100), []
    for tenant, amount, give in acts:
        if give and taken:
            shares.give(*taken.pop())
        elif shares.take(f"t{tenant}", amount) is None:
            taken.append((f"t{tenant}", amount))
        held = {t: sum(n for who, n in taken if who == t) for t, _ in taken}
        assert shares.total == sum(held.values()) <= 100
        assert all(shares.held(t) == n for t, n in held.items())
        assert shares.holders() == len(held)
        # The last who took anything left at least as much as he had then: somebody new gets half of what is free.
        free = 100 - shares.total
        assert shares.refusal("new", free // 2) is None
    for who, amount in taken:
        shares.give(who, amount)
    assert shares.total == shares.holders() == 0


@pytest.mark.parametrize(("tenants", "each"), [(1, 50), (2, 33), (4, 20)])
def test_tenants_that_all_want_everything_come_to_equal_parts_and_leave_one(tenants, each):
    shares = Shares(100)
    for _ in range(100):
        for tenant in range(tenants):
            shares.take(f"t{tenant}", 1)
    assert [shares.held(f"t{tenant}") for tenant in range(tenants)] == [each] * tenants
    assert shares.refusal("t0", 1) == "tenant"
    assert shares.take("new", 5) is None


def test_who_is_refused_for_others_sake_is_told_so():
    shares = Shares(100)
    shares.take("greedy", 50)
    assert shares.refusal("greedy", 1) == "tenant"
    assert shares.refusal("modest", 30) == "all"
    assert shares.lacking("modest", 30) == 10
    assert not shares.may_ever_fit(51)


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_the_pace_is_what_left_while_something_stood_in_the_line():
    clock = Clock()
    pace = Pace(clock)
    assert pace.seconds(100) is None
    pace.entered()
    for _ in range(60):
        clock.now += 0.5
        pace.left(50, empty=False)
    assert math.isclose(pace.seconds(200), 2.0, rel_tol=0.05)
    pace.left(0, empty=True)
    clock.now += 1000  # nothing to do is no slowness
    pace.entered()
    assert math.isclose(pace.seconds(200), 2.0, rel_tol=0.05)
    for _ in range(60):
        clock.now += 1
        pace.left(50, empty=False)
    assert math.isclose(pace.seconds(200), 4.0, rel_tol=0.15)


def test_a_time_to_come_again_grows_with_what_is_in_the_way():
    tickets, clock = Tickets(100, 1000), Clock()
    tickets.pace = Pace(clock)
    demand = Demand(1, 50, 100)
    held = []
    for _ in range(5):
        held.append(tickets.open("ten-1", None))
        assert tickets.queue(held[-1], demand, 100) is None
    assert tickets.refusal("ten-1", demand, 100) == "tenant_share"
    assert tickets.refusal("ten-1", demand, 5) == "tenant_queue"
    assert tickets.seconds_until("ten-1", demand) is None
    clock.now = 2.0
    tickets.end(held.pop())  # 100 tokens in 2 seconds
    assert tickets.refusal("ten-1", demand, 100) is None
    wanted = Demand(1, 50, 300)
    assert tickets.refusal("ten-1", wanted, 100) == "tenant_share"
    assert math.isclose(tickets.seconds_until("ten-1", wanted), 8.0)  # 400 + 400 + 2 * 300 - 1000
