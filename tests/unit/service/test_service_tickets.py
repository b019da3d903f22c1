"""Tickets: what is gone opens none and stays gone; queues count what waits."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_store.errors import NotFound
from prefix_store.scope import Owner
from prefix_store.version_rows import Resolved
from service.tickets import Demand, Tickets


def version(number=1, owner="own-a", tenant="ten-1"):
    whose = Owner(tenant, owner, "user", "alice")
    name = f"ver-{owner}-{number}"
    return Resolved(name, number, "alice:v", f"alice:v@{number}", whose, 4, 4, "f", {}, "s")


@pytest.mark.parametrize("gone", ["ten-1", "own-a", "ver-own-a-1"])
def test_what_is_revoked_ends_and_opens_never_again(gone):
    tickets = Tickets()
    mine = tickets.open("ten-1", None, version())
    other = tickets.open("ten-1", None, version(owner="own-b")) if gone != "ten-1" else None
    assert tickets.revoke([gone]) == [mine]
    assert mine.revoked
    assert other is None or not other.revoked
    for _ in range(2):
        with pytest.raises(NotFound):
            tickets.open("ten-1", None, version())
    assert tickets.open("ten-2", None, version(owner="own-c", tenant="ten-2"))


def test_a_job_that_is_gone_ends_all_of_its_checkpoints_and_no_others():
    tickets = Tickets()
    first, second = (replace(version(number), number=None, job_id="ftjob-1") for number in (1, 2))
    mine = [tickets.open("ten-1", None, found) for found in (first, second)]
    other = tickets.open("ten-1", None, replace(version(3), job_id="ftjob-2"))
    assert set(tickets.revoke(["ftjob-1"])) == set(mine)
    assert not other.revoked
    with pytest.raises(NotFound):
        tickets.open("ten-1", None, first)


def test_a_base_models_ticket_survives_the_owners_but_not_the_tenant():
    tickets = Tickets()
    base = tickets.open("ten-1", None)
    tickets.revoke(["own-a"])
    assert not base.revoked
    tickets.revoke(["ten-1"])
    assert base.revoked


def test_ended_tickets_are_forgotten_and_not_found_by_a_revocation():
    tickets = Tickets()
    ticket = tickets.open("ten-1", None, version())
    assert tickets.in_use() == {"ver-own-a-1"}
    tickets.end(ticket)
    assert ticket.ended.is_set()
    assert tickets.in_use() == set()
    assert tickets.count() == 0
    assert tickets.revoke(["own-a"]) == []


@given(
    st.lists(
        st.tuples(st.sampled_from(["open", "start", "end"]), st.integers(0, 5), st.integers(1, 4)),
        max_size=60,
    )
)
def test_a_tenants_queue_never_exceeds_its_bound_and_empties(steps):
    most = 6
    tickets, held = Tickets(), []
    waiting = {}
    for act, which, rows in steps:
        if act == "open":
            ticket = tickets.open(f"ten-{which % 2}", None)
            before = sum(n for t, n in waiting.items() if t.tenant_id == ticket.tenant_id)
            refused = tickets.queue(ticket, Demand(rows, rows * 10, rows * 12), most)
            assert (refused is None) == (before + rows <= most)
            if refused is None:
                waiting[ticket] = rows
                held.append(ticket)
            else:
                tickets.end(ticket)
        elif held:
            ticket = held[which % len(held)]
            if act == "start":
                tickets.started(ticket)
                waiting[ticket] = max(0, waiting[ticket] - 1)
            else:
                tickets.end(ticket)
                waiting.pop(ticket)
                held.remove(ticket)
        for tenant in ("ten-0", "ten-1"):
            assert tickets.rows.held(tenant) == sum(n for t, n in waiting.items() if t.tenant_id == tenant)
            assert tickets.tokens.held(tenant) == sum(t.positions for t in held if t.tenant_id == tenant)
    for tenant in ("ten-0", "ten-1"):
        own, other = (
            sum(ticket.tokens for ticket in held if (ticket.tenant_id == tenant) is mine)
            for mine in (True, False)
        )
        assert tickets.tokens_ahead(tenant) == own + min(own, other)
    for ticket in held:
        tickets.end(ticket)
    assert (
        tickets.rows.total == tickets.rows.holders() == tickets.tokens.total == tickets.tokens.holders() == 0
    )


def test_what_is_gone_takes_no_memory_for_ever_and_is_refused_while_anything_may_name_it(monkeypatch):
    now = [0.0]
    tickets = Tickets()
    monkeypatch.setattr(tickets._gone, "_clock", lambda: now[0])
    for second in range(5000):
        now[0] = 2.0 * second
        tickets.revoke([f"ver-own-a-{second}"])
        with pytest.raises(NotFound):
            tickets.open("ten-1", None, version(second))
        with pytest.raises(NotFound):
            tickets.open("ten-1", None, version(max(0, second - 1700)))
    assert len(tickets._gone) <= 1801
