"""An engine that its user turns: what blocks is done by whoever turns it, and nobody ends it under a step."""

import threading

import pytest

from prefix_engine import Engine, EngineConfig, Failed, Request
from prefix_engine.testing import Collected, random_prefix, tiny_base

BASE = tiny_base(positions=512)
PROMPT = tuple(range(40))


class Gate:
    """A loader that waits until it is let."""

    def __init__(self):
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, _):
        self.begun.set()
        assert self.open.wait(60)
        return random_prefix(BASE, 4)


@pytest.fixture
def turned():
    made = []

    def make(loader=lambda _: random_prefix(BASE, 4)):
        made.append(Engine(BASE, EngineConfig(rows=4, kv_bytes=1 << 20, pool_bytes=1 << 20), loader))
        return made[-1]

    yield make
    for one in made:
        one.close()


def ask(engine, tokens=5, on_event=None, **settings):
    sink = Collected(on_event)
    engine.submit(Request(PROMPT, tokens, None, **settings), sink)
    return sink


def in_time(act):
    """Do it on a thread of its own, so that what hangs fails; what it raised."""
    raised = []

    def run():
        try:
            act()
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive(), "it waits for itself"
    return raised


def test_who_turns_the_engine_forgets_between_two_turns(turned):
    one = turned()

    def act():
        sink = ask(one, reuse=("acme", "alice"))
        while not sink.ended:
            one.turn()
        assert one.stats().pages_cached
        one.forget({"alice"})

    assert in_time(act) == []
    assert not one.stats().pages_cached


def test_who_turns_the_engine_revokes_between_two_turns_what_runs_and_what_loads(turned):
    gate = Gate()
    one = turned(gate)
    sinks = []

    def act():
        sinks.append(ask(one, 100, prefix_id="p"))
        one.turn()
        assert gate.begun.wait(60)
        threading.Timer(0.05, gate.open.set).start()
        one.revoke({"p"})

    assert in_time(act) == []
    assert sinks[0].wait().code == "revoked"
    assert not one.holds({"p"})


@pytest.mark.parametrize("wait_for", ["forget", "revoke"])
@pytest.mark.parametrize("starts", [True, False])
def test_a_sink_that_would_wait_for_its_own_engine_is_told(turned, starts, wait_for):
    one, raised = turned(), []

    def on_event(_):
        if raised:
            return
        try:
            getattr(one, wait_for)({"p"})
        except RuntimeError as error:
            raised.append(str(error))

    def act():
        if starts:
            one.start()
        sink = ask(one, on_event=on_event)
        while not starts and not sink.ended:
            one.turn()
        sink.wait()

    assert in_time(act) == []
    assert raised == ["not to be called from a sink"]


def test_an_engine_is_closed_behind_the_turn_that_is_under_way(turned):
    one, inside, go_on, seen = turned(), threading.Event(), threading.Event(), []

    def on_event(event):
        if not inside.is_set():
            inside.set()
            assert go_on.wait(60)
            seen.append(closing.is_alive())
        seen.append(event)

    sink = ask(one, 50, on_event=on_event)
    beside = ask(one, 50)

    def turn():
        while not inside.is_set():
            one.turn()

    turning = threading.Thread(target=turn, daemon=True)
    turning.start()
    assert inside.wait(60)
    closing = threading.Thread(target=one.close, daemon=True)
    closing.start()
    # What has not happened cannot be waited for: this is the time that a wrong engine gets to end them.
    closing.join(0.3)
    assert not beside.ended
    assert not sink.ended
    go_on.set()
    closing.join(60)
    turning.join(60)
    assert seen[0] is True
    assert [type(sink.wait()), sink.wait().code] == [Failed, "engine_stopped"]
    assert beside.wait().code == "engine_stopped"
    assert not one.turn()
