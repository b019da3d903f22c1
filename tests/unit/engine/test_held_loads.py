"""How often prefixes are loaded that find no room when they come; with the loop alone and loads in turn."""

import queue
from collections import Counter

import pytest

from prefix_engine import EngineConfig, Request
from prefix_engine.kv import PagedMemory
from prefix_engine.loop import Loop
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, random_prefix, tiny_base

BASE = tiny_base(positions=512)
PAGE = 16
PAGE_BYTES = PagedMemory(BASE.config, BASE.device, PAGE, 1, 1).page_bytes
PATIENCE = 3000


class Line:
    """A loop of which a test says what arrives when; ids of prefixes read `name-m`."""

    def __init__(self, pool_pages, **limits):
        self.calls, self.delivered, self.sinks = Counter(), queue.SimpleQueue(), []
        config = EngineConfig(
            page=PAGE,
            kv_bytes=400 * PAGE_BYTES,
            pool_bytes=pool_pages * PAGE_BYTES,
            kernels="torch",
            **limits,
        )
        self.loop = Loop(BASE, config, self.load, self.delivered.put)
        self.loop.pool.start()

    def load(self, prefix_id):
        self.calls[prefix_id] += 1
        return random_prefix(BASE, int(prefix_id.split("-")[1]), offset=0, seed=1)

    def ask(self, share, prefix_id=None, tokens=3):
        sink = Collected()
        request = Request((1, 2, 3), tokens, None, prefix_id=prefix_id, share=share)
        self.loop.add(Sequence(len(self.sinks), request), sink)
        self.sinks.append(sink)
        return sink

    def turn(self):
        """One turn, before which every load that was begun has come."""
        while self.loop.pool.is_loading(self.calls):
            self.loop.settle(self.delivered.get(timeout=60))
        self.loop.turn(0.0)
        # The loader's threads may not have taken up yet what the turn began.
        while self.loop.pool.is_loading(Everything()):
            self.loop.settle(self.delivered.get(timeout=60))

    def until(self, *sinks):
        for _ in range(PATIENCE):
            if all(sink.ended for sink in sinks):
                return
            self.turn()
        raise AssertionError("requests wait for ever")


class Everything:
    def __contains__(self, _):
        return True


@pytest.fixture
def line():
    made = []

    def make(*args, **limits):
        made.append(Line(*args, **limits))
        return made[-1]

    yield make
    for one in made:
        one.loop.pool.stop()
        one.loop.abandon("engine_stopped", "the engine has stopped")


@pytest.mark.parametrize("shares", ["one", "each"])
def test_prefixes_that_wait_for_room_are_loaded_once(line, shares):
    one = line(2, rows=8, load_threads=2)
    running = [one.ask("first", f"pinned{n}-16", tokens=60) for n in range(2)]
    for _ in range(6):
        one.turn()
    assert one.loop.pool.resident == 2
    waiting = [one.ask(f"s{n}" if shares == "each" else "s", f"own{n}-16") for n in range(24)]
    one.until(*running, *waiting)
    assert {sink.wait().reason for sink in waiting} == {"length"}
    assert one.calls == Counter([f"pinned{n}-16" for n in range(2)] + [f"own{n}-16" for n in range(24)])


def test_a_prefix_whose_request_was_passed_by_others_is_loaded_once(line):
    one = line(2, rows=1, load_threads=2)
    running = one.ask("z", "pinned-32", tokens=60)
    one.turn()
    one.turn()
    late = one.ask("z", "late-32")
    one.turn()
    others = [one.ask(f"s{n}") for n in range(8)]
    one.until(running, late, *others)
    assert one.calls == {"pinned-32": 1, "late-32": 1}
    assert not one.loop.pool.loading


def test_loaded_prefixes_further_back_do_not_keep_out_a_load_that_comes_first(line):
    """There is a page for the newcomer, which no request that waits for two pages can use."""
    one = line(3, rows=8, load_threads=1)
    running = one.ask("z", "pinned-32", tokens=300)
    one.turn()
    one.turn()
    large = [one.ask("z", f"large{n}-32") for n in range(2)]
    for _ in range(4):
        one.turn()
    assert one.loop.pool.loading == 2
    newcomer = one.ask("new", "small-16")
    one.until(newcomer)
    assert not running.ended
    one.until(running, *large)
    assert one.calls == {"pinned-32": 1, "large0-32": 1, "large1-32": 2, "small-16": 1}


def test_a_loaded_prefix_whose_requests_went_away_makes_room_for_a_load(line):
    one = line(2, rows=2, load_threads=1)
    one.ask("z", "pinned-32", tokens=300)
    one.turn()
    one.turn()
    gone = [Sequence(100 + n, Request((1,), 3, None, prefix_id=f"gone{n}-16")) for n in range(2)]
    for sequence in gone:
        one.loop.add(sequence, Collected())
    one.turn()
    assert one.loop.pool.loading == 2
    for sequence in gone:
        sequence.cancelled = True
    one.turn()
    assert one.loop.pool.loading == 0
