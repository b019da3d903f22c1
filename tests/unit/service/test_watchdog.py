"""The watchdog over real engines: which ones it gives up, and which not; and who has lost sight of deletions."""

import threading
import time

import pytest

from prefix_engine import Engine, EngineConfig, Request
from prefix_engine.testing import Collected, TeacherForced, random_prefix, tiny_base
from service.tickets import Tickets
from service.watchdog import STUCK_STATUS, Watchdog

BASE = tiny_base()
WINDOW_S = 3.0
PATIENCE_S = 120


class Watched:
    """An engine under a watchdog that notes what it would have done."""

    def __init__(self, loader=lambda _: random_prefix(BASE, 4), sampler=None):
        limits = {"kv_bytes": 64 << 20, "pool_bytes": 4 << 20}
        self.engine = Engine(BASE, EngineConfig(**limits), loader, sampler=sampler)
        self.told, self.gave_up, self.blind = [], threading.Event(), False
        self.tickets = Tickets()
        refuse = lambda: self.told.append("refuse")  # noqa: E731
        self.dog = Watchdog(self.engine, self.tickets, WINDOW_S, lambda: self.blind, refuse, self._end)
        self.engine.start()
        self.dog.start()

    def _end(self, status):
        self.told.append(status)
        self.gave_up.set()

    def ask(self, **more):
        sink = Collected()
        self.engine.submit(Request((1, 2, 3), 8, None, **more), sink)
        return sink

    def close(self):
        self.engine.close()
        self.dog.stop()


@pytest.fixture
def watched():
    made = []

    def make(**options):
        made.append(Watched(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_loader_that_does_not_come_back_is_a_stuck_engine(watched):
    """The loop turns all the while: only that nothing gets on tells it."""
    hold = threading.Event()

    def loader(_):
        assert hold.wait(PATIENCE_S)
        return random_prefix(BASE, 4)

    one = watched(loader=loader)
    sink = one.ask(prefix_id="a")
    assert one.gave_up.wait(PATIENCE_S)
    assert one.told == ["refuse", STUCK_STATUS]
    assert one.engine.beat_age() > WINDOW_S
    hold.set()
    sink.wait()
    give_up = time.monotonic() + PATIENCE_S
    while one.engine.beat_age() > WINDOW_S / 2:  # a step has ended since
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_an_engine_that_has_nothing_to_do_or_gets_on_is_left_alone(watched, monkeypatch):
    monkeypatch.setattr("service.watchdog._PAUSED_S", 0.5)  # shorter than the window, as it is in production
    one = watched()
    end = time.monotonic() + 1.3 * WINDOW_S
    while time.monotonic() < end:
        one.ask(prefix_id="a").wait()
        time.sleep(0.2)
    time.sleep(1.3 * WINDOW_S)
    one.engine.close()
    time.sleep(1.3 * WINDOW_S)
    assert one.told == []


def test_an_engine_that_an_error_ended_is_given_up_without_waiting(watched):
    class Faulty(TeacherForced):
        def pick(self, logits, sequences):
            raise MemoryError("no memory")

    one = watched(sampler=Faulty())
    assert one.ask().wait().code == "engine_stopped"
    assert one.gave_up.wait(PATIENCE_S)
    assert one.told == ["refuse", STUCK_STATUS]
    assert one.engine.beat_age() == float("inf")


def test_a_process_that_can_follow_deletions_no_more_tells_its_requests_and_is_given_up(watched):
    one = watched()
    ticket = one.tickets.open("ten-1", None)
    ticket.fail = lambda failed: (one.told.append(failed.code), one.tickets.end(ticket))
    assert not one.gave_up.wait(2 * one.dog._look_s)
    one.blind = True
    assert one.gave_up.wait(PATIENCE_S)
    assert one.told == ["refuse", "engine_stopped", STUCK_STATUS]
