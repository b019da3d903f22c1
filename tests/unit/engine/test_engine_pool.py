import queue
import sys
import threading
from contextlib import contextmanager
from itertools import count

import pytest
import torch

from prefix_engine.kv import PagedMemory
from prefix_engine.pool import LoadError, LoadRefused, PrefixPool
from prefix_engine.prefix import Prefix, PrefixError
from prefix_engine.scheduler import Readiness
from prefix_engine.testing import by_slot, random_prefix, tiny_base

BASE = tiny_base()
PAGE = 4


class Bench:
    """A pool of `pages` prefix pages whose loads a test lets through one by one."""

    def __init__(self, pages=4, loader=None, threads=2):
        self.memory = PagedMemory(BASE.config, BASE.device, PAGE, 1, 1)
        self.memory = PagedMemory(BASE.config, BASE.device, PAGE, 1, pages * self.memory.page_bytes)
        self.results = queue.SimpleQueue()
        self.pool = PrefixPool(BASE, self.memory, loader or load, threads, self.results.put)
        self.pool.start()

    def settle(self):
        return self.pool.settle(self.results.get(timeout=120))

    def load(self, prefix_id):
        assert self.pool.ensure(prefix_id, ()) is Readiness.BEGUN
        assert self.settle() is None
        return self.pool.ensure(prefix_id, ())

    def nonzero_pages(self):
        return {page for page, content in enumerate(self.memory.content) if bool(content.any())}


def load(prefix_id):
    """Ids read `name-m`."""
    return random_prefix(BASE, int(prefix_id.split("-")[1]), seed=hash(prefix_id) % 1000)


@pytest.fixture
def bench():
    made = Bench()
    yield made
    made.pool.stop()


def test_a_prefix_lies_in_pages_as_it_was_loaded(bench):
    assert bench.load("a-6") is Readiness.READY
    resident, tensor = bench.pool.get("a-6"), load("a-6").tensor
    slots = [page * PAGE + i for page in resident.pages for i in range(PAGE)]
    for layer in range(BASE.config.layers):
        keys, values = by_slot(bench.memory.keys[layer]), by_slot(bench.memory.values[layer])
        assert torch.equal(keys[:, slots[:6]], tensor[layer, 0])
        assert torch.equal(values[:, slots[:6]], tensor[layer, 1])
        assert not keys[:, slots[6:]].any()


def test_the_least_recently_used_prefix_makes_room(bench):
    for name in ("a-8", "b-4", "c-4"):
        bench.load(name)
    bench.pool.ensure("a-8", ())
    assert bench.load("d-4") is Readiness.READY
    assert [bench.pool.get(n) is not None for n in ("a-8", "b-4", "c-4", "d-4")] == [True, False, True, True]
    assert bench.pool.evictions == 1


def test_a_pinned_prefix_is_never_evicted_and_the_newcomer_waits(bench):
    bench.load("a-16")
    bench.pool.pin("a-16")
    assert bench.load("b-4") is Readiness.NO_ROOM
    bench.pool.unpin("a-16")
    assert bench.pool.ensure("b-4", ()) is Readiness.READY
    assert bench.pool.get("a-16") is None


def test_a_prefix_that_an_earlier_request_wants_is_not_evicted(bench):
    bench.load("a-16")
    assert bench.load("b-4") is Readiness.READY  # nobody wants a
    assert bench.load("a-16") is Readiness.READY
    bench.pool.ensure("b-4", {"a-16"})
    assert bench.settle() is None
    assert bench.pool.ensure("b-4", {"a-16"}) is Readiness.NO_ROOM


def test_nothing_is_evicted_for_a_prefix_that_would_not_fit_even_so(bench):
    bench.load("a-8")
    bench.load("b-8")
    bench.pool.pin("a-8")
    assert bench.load("c-16") is Readiness.NO_ROOM
    assert bench.pool.get("b-8") is not None


def test_evicted_pages_are_zero(bench):
    bench.load("a-16")
    assert bench.load("b-4") is Readiness.READY
    assert bench.nonzero_pages() == set(bench.pool.get("b-4").pages)


def test_a_prefix_larger_than_the_pool_is_an_error_of_its_own(bench):
    assert bench.pool.ensure("a-17", ()) is Readiness.BEGUN
    assert bench.settle().code == "load_failed"
    assert bench.pool.loading == 0


def test_a_prefix_is_loaded_once_however_many_ask(bench):
    calls = []
    gate = threading.Event()

    def slow(prefix_id):
        calls.append(prefix_id)
        gate.wait(120)
        return load(prefix_id)

    busy = Bench(loader=slow)
    assert busy.pool.ensure("a-4", ()) is Readiness.BEGUN
    for _ in range(5):
        assert busy.pool.ensure("a-4", ()) is Readiness.LOADING
    gate.set()
    busy.settle()
    assert busy.pool.ensure("a-4", ()) is Readiness.READY
    assert calls == ["a-4"]
    busy.pool.stop()


def test_loads_under_way_are_bounded():
    gate = threading.Event()
    busy = Bench(loader=lambda i: gate.wait(120) and load(i), threads=1)
    for number in range(50):
        busy.pool.ensure(f"{number}-4", ())
    assert busy.pool.loading == 2
    gate.set()
    busy.pool.stop()


class DriversError(Exception):
    """Of a library, whose code is its own affair and whose words are not for clients."""

    code = "4xp6"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LoadRefused("corrupt", "told by the loader"), "corrupt"),
        (DriversError("SELECT canary"), "load_failed"),
        (OSError("disk"), "load_failed"),
    ],
)
def test_the_loaders_error_names_its_code_if_it_has_one(error, code):
    def fail(_):
        raise error

    bench = Bench(loader=fail)
    bench.pool.ensure("a-4", ())
    assert bench.settle() == LoadError(
        code, "told by the loader" if code == "corrupt" else "the prefix could not be loaded"
    )
    bench.pool.stop()


def test_a_prefix_that_does_not_fit_the_base_never_becomes_resident():
    good = random_prefix(BASE, 4)
    wrong = {
        "base_mismatch": Prefix(good.tensor, 4, "another"),
        "shape": Prefix(good.tensor[:1], 4, BASE.fingerprint),
        "non_finite": Prefix(good.tensor * float("nan"), 4, BASE.fingerprint),
    }
    bench = Bench(loader=wrong.__getitem__)
    for code in wrong:
        bench.pool.ensure(code, ())
        assert bench.settle().code == code
    assert bench.pool.resident == 0
    bench.pool.stop()


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_one_number_that_is_not_finite_is_found_wherever_it_stands(number):
    good = random_prefix(BASE, 4)
    for place in (0, good.tensor.numel() // 2, good.tensor.numel() - 1):
        tensor = good.tensor.clone()
        tensor.view(-1)[place] = number
        with pytest.raises(PrefixError, match="NaN or infinity"):
            Prefix(tensor, 4, BASE.fingerprint).check(BASE)


def test_finite_numbers_whose_sum_overflows_are_finite():
    tensor = torch.full_like(random_prefix(BASE, 4).tensor, 3e38)
    assert tensor[0].sum() == float("inf")
    Prefix(tensor, 4, BASE.fingerprint).check(BASE)


def test_infinities_of_both_signs_are_found():
    tensor = random_prefix(BASE, 4).tensor.clone()
    tensor.view(-1)[:2] = torch.tensor([float("inf"), float("-inf")])
    with pytest.raises(PrefixError, match="NaN or infinity"):
        Prefix(tensor, 4, BASE.fingerprint).check(BASE)


@contextmanager
def interrupted(function, act):
    """Call `act` before every instruction of a function, as another thread may."""

    def trace(frame, event, _):
        frame.f_trace_opcodes = frame.f_code is function.__code__
        if event == "opcode":
            act()
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


def test_a_prefix_is_held_at_every_moment_from_its_load_to_its_end(bench):
    pool, seen = bench.pool, []
    assert pool.ensure("a-6", ()) is Readiness.BEGUN
    loaded = bench.results.get(timeout=120)

    def look():
        seen.append(pool.holds("a-6"))

    with interrupted(PrefixPool.settle, look):
        assert pool.settle(loaded) is None
    with interrupted(PrefixPool._place, look):
        assert pool.ensure("a-6", ()) is Readiness.READY
    assert len(seen) > 50
    assert all(seen)


def test_who_asks_whether_a_prefix_is_held_does_not_miss_one_that_moves_meanwhile(bench):
    pool = bench.pool
    for moment in range(15):
        pool.ensure("a-6", ())
        loaded, moments = bench.results.get(timeout=120), count()

        def move(loaded=loaded, moments=moments, moment=moment):
            if next(moments) == moment:
                pool.settle(loaded)
                pool.ensure("a-6", ())

        with interrupted(PrefixPool.holds, move):
            assert pool.holds("a-6")
        if next(moments) <= moment:
            move(moments=iter([moment]))  # the look was over before
        assert pool.get("a-6") is not None
        pool.erase(["a-6"])


def test_a_revoked_prefix_is_zeroed(bench):
    bench.load("a-6")
    bench.load("b-6")
    bench.pool.refuse(["a-6"])
    bench.pool.erase(["a-6"])
    assert bench.nonzero_pages() == set(bench.pool.get("b-6").pages)


def test_a_load_that_was_under_way_when_revoked_leaves_nothing():
    gate = threading.Event()
    bench = Bench(loader=lambda i: gate.wait(120) and load(i))
    bench.pool.ensure("a-6", ())
    bench.pool.refuse(["a-6"])
    bench.pool.erase(["a-6"])
    assert bench.pool.is_loading({"a-6"})
    gate.set()
    assert bench.settle().code == "revoked"
    assert not bench.pool.is_loading({"a-6"})
    assert bench.pool.loading == bench.pool.resident == 0
    assert bench.nonzero_pages() == set()
    bench.pool.stop()


def test_a_prefix_in_use_cannot_be_erased(bench):
    bench.load("a-6")
    bench.pool.pin("a-6")
    with pytest.raises(ValueError, match="still uses"):
        bench.pool.erase(["a-6"])


def test_a_loaded_prefix_that_nobody_waits_for_any_more_is_dropped(bench):
    bench.load("a-16")
    bench.pool.pin("a-16")
    bench.load("b-4")
    bench.pool.drop_held({"other"})
    assert bench.pool.loading == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_prefix_for_which_there_is_no_memory_fails_alone_and_holds_no_pages(bench, monkeypatch, error):
    bench.load("a-4")
    assert bench.pool.ensure("b-8", ()) is Readiness.BEGUN
    assert bench.settle() is None
    copy, copies = torch.Tensor.copy_, count()

    def scarce(*given):
        if next(copies):  # the first page is full by then
            raise error
        return copy(*given)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "copy_", scarce)
        assert bench.pool.ensure("b-8", ()) is Readiness.LOADING
        assert bench.pool.ensure("b-8", ()) is Readiness.LOADING
    assert bench.pool.is_loading({"b-8"})  # a revocation waits until it has been told
    assert bench.settle() == LoadError("load_failed", "there was no memory for the prefix")
    assert not bench.pool.holds("b-8")
    assert bench.nonzero_pages() == set(bench.pool.get("a-4").pages)
    assert bench.memory.prefix_pages.free == 3
    assert bench.load("b-8") is Readiness.READY


def test_a_stopped_pool_begins_no_load_and_still_answers_each_order():
    gate, begun = threading.Event(), queue.SimpleQueue()

    def slow(prefix_id):
        begun.put(prefix_id)
        gate.wait(120)
        return load(prefix_id)

    bench = Bench(loader=slow, threads=1)
    bench.pool.ensure("a-4", ())
    bench.pool.ensure("b-4", ())
    assert begun.get(timeout=120) == "a-4"
    bench.pool.stop()
    gate.set()
    assert {bench.settle().code, bench.settle().code} == {"engine_stopped"}
    assert not bench.pool.is_loading({"a-4", "b-4"})
    assert begun.empty()
