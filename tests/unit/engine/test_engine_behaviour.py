"""What a caller of the engine may rely on, with its real threads and a tiny base."""

import asyncio
import itertools
import logging
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from waiting import PATIENCE_S, Hanging, lasting

from prefix_engine import (
    Delta,
    Engine,
    EngineConfig,
    Failed,
    Finished,
    LoadRefused,
    Prefix,
    QueueFullError,
    Request,
    RequestError,
    Sampling,
)
from prefix_engine.sampling import Score
from prefix_engine.testing import Collected, TeacherForced, random_prefix, tiny_base
from prefix_engine.text import token_info

BASE = tiny_base(positions=4096)
END = BASE.config.end_id
LONG = 3000


@pytest.fixture
def engine(started):
    return lambda loader=load, *, base=BASE, **more: started(base, loader, **more)


def load(prefix_id):
    """Ids read `name-m`."""
    name, m = prefix_id.split("-")
    return random_prefix(BASE, int(m), seed=len(name) + int(m), spread=0.5)


def ask(engine, prompt=(1, 2, 3), max_tokens=5, *, end_id=None, sink=None, **settings):
    sink = sink or Collected()
    generation = engine.submit(Request(tuple(prompt), max_tokens, end_id, **settings), sink)
    return sink, generation


def wait_for(condition, timeout_s=120.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.002)


def pages_are_zero(engine):
    return not bool(engine._loop.memory.content.any())


def test_a_text_is_generated_and_counted(engine):
    sink, _ = ask(engine(), max_tokens=7)
    assert sink.wait() == Finished("length", 3, 7)
    assert len(sink.tokens) == 7
    assert sink.text == BASE.tokenizer.decode(list(sink.tokens))


def test_who_turns_the_engine_gets_what_a_started_one_gives(engine):
    prompts = [(n, n + 1, 7) for n in range(12)]
    started = engine(rows=4)
    expected = [ask(started, prompt, 9, prefix_id="bb-5")[0] for prompt in prompts]
    one = Engine(BASE, EngineConfig(rows=4, kv_bytes=64 << 20, pool_bytes=4 << 20), load)
    sinks = [ask(one, prompt, 9, prefix_id="bb-5")[0] for prompt in prompts]
    left, steps = ask(one, max_tokens=LONG, prefix_id="a-5")[0], 0
    assert all(sink.events == [] for sink in (*sinks, left))
    while not all(sink.ended for sink in sinks):
        steps += one.turn()
    assert steps >= 3 * 9  # twelve texts of nine tokens in four rows
    for sink, twin in zip(sinks, expected, strict=True):
        twin.wait()
        assert sink.tokens == twin.tokens
    one.close()
    assert left.wait().code == "engine_stopped"


def test_the_prefix_changes_the_text(engine):
    one = engine()
    texts = [ask(one, max_tokens=20, prefix_id=i)[0] for i in (None, "a-5", "bb-5")]
    for sink in texts:
        sink.wait()
    assert len({sink.tokens for sink in texts}) == 3


def test_the_end_token_ends_the_text_and_is_not_in_it(engine):
    sampler = TeacherForced()
    request = Request((1,), 9, END)
    sampler.expect(request, (*b"hi", END))
    sink = Collected()
    engine(sampler=sampler).submit(request, sink)
    assert sink.wait() == Finished("stop", 1, 3)
    assert sink.text == "hi"
    assert sink.tokens == tuple(b"hi")


def test_a_stop_string_ends_the_text_and_is_not_in_it(engine):
    sampler = TeacherForced()
    request = Request((1,), 9, None, stop=("ll",))
    sampler.expect(request, tuple(b"hello you"))
    sink = Collected()
    engine(sampler=sampler).submit(request, sink)
    assert sink.wait() == Finished("stop", 1, 4)
    assert sink.text == "he"


def test_echo_without_tokens_scores_the_prompt(engine):
    prompt = tuple(b"some prompt that takes several chunks")
    sink, _ = ask(engine(chunk_tokens=5), prompt, 0, echo=True, logprobs=2, prefix_id="a-9")
    assert sink.wait() == Finished("length", len(prompt), 0)
    assert sink.text == bytes(prompt).decode()
    first, *others = sink.infos
    assert (first.logprob, first.top) == (None, ())
    for info in others:
        assert info.logprob < 0
        (place,) = (place for place, (token, _, _) in enumerate(info.top) if token == info.id)
        assert info.top[place][1:] == (info.text, info.logprob)
        assert len(info.top) == 2 + (place == 2)


def test_echoed_scores_are_those_that_generation_reports(engine):
    one = engine()
    told, _ = ask(one, tuple(b"abc"), 12, logprobs=1, prefix_id="a-9")
    told.wait()
    echoed, _ = ask(one, (*b"abc", *told.tokens), 0, echo=True, logprobs=1, prefix_id="a-9")
    echoed.wait()
    for mine, other in zip(told.infos, echoed.infos[3:], strict=True):
        assert mine.id == other.id
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)


def test_a_seed_repeats_a_text_and_no_seed_does_not(engine):
    one = engine()

    def text(seed):
        sink, _ = ask(one, max_tokens=30, sampling=Sampling(temperature=1.5, seed=seed))
        sink.wait()
        return sink.tokens

    assert text(3) == text(3)
    assert text(None) != text(None)


def test_a_cancelled_row_is_free_by_the_next_step(engine):
    one = engine(rows=1)
    held = Hanging(lambda event: None)
    first, generation = ask(one, max_tokens=LONG, sink=Collected(held))
    second, _ = ask(one, max_tokens=1)
    assert held.begun.wait(PATIENCE_S)
    steps = one.stats().steps
    generation.cancel()
    held.go_on.set()
    assert first.wait() == Failed("cancelled", "the request was cancelled")
    assert second.wait() == Finished("length", 3, 1)
    assert one.stats().steps - steps <= 3
    generation.cancel()
    assert one.drain(PATIENCE_S)
    assert len([event for event in first.events if not isinstance(event, Delta)]) == 1


def test_a_waiting_request_can_be_cancelled(engine):
    one = engine(rows=1)
    ask(one, max_tokens=LONG)
    waiting, generation = ask(one)
    generation.cancel()
    assert waiting.wait().code == "cancelled"


def test_no_token_comes_after_revoke_under_32_rows(engine):
    one = engine(rows=32)
    returned, late = threading.Event(), []

    def watch(event):
        if returned.is_set():
            late.append(event)

    with lasting(one, quick=30):  # so that nobody makes room for who waits
        doomed = [ask(one, max_tokens=LONG, prefix_id="a-9", sink=Collected(watch))[0] for _ in range(20)]
        safe = [ask(one, max_tokens=60, prefix_id="bb-9")[0] for _ in range(12)]
        queued = [ask(one, max_tokens=9, prefix_id="a-9", sink=Collected(watch))[0] for _ in range(5)]
        wait_for(lambda: all(sink.events for sink in doomed))

        one.revoke(["a-9", "never-1"])
        returned.set()
    assert all(sink.ended and sink.events[-1].code == "revoked" for sink in [*doomed, *queued])
    assert one._loop.pool.get("a-9") is None
    assert [sink.wait().completion_tokens for sink in safe] == [60] * 12
    assert ask(one, prefix_id="a-9")[0].wait().code == "revoked"
    assert late == []
    one.revoke(["bb-9"])
    assert pages_are_zero(one)


def test_revoke_waits_for_a_load_under_way_and_leaves_nothing_of_it(engine):
    gate, begun = threading.Event(), threading.Event()

    def slow(prefix_id):
        begun.set()
        gate.wait(PATIENCE_S)
        return load(prefix_id)

    one = engine(slow)
    sink, _ = ask(one, prefix_id="a-9")
    assert begun.wait(PATIENCE_S)
    revoker = threading.Thread(target=one.revoke, args=(["a-9"],))
    revoker.start()
    assert sink.wait().code == "revoked"
    revoker.join(0.1)
    assert revoker.is_alive()
    gate.set()
    revoker.join(PATIENCE_S)
    assert not revoker.is_alive()
    assert one.stats().resident_prefixes == 0
    assert pages_are_zero(one)


def test_revoke_returns_before_the_start_and_after_the_end(engine):
    unstarted = Engine(BASE, EngineConfig(kv_bytes=1 << 20, pool_bytes=1 << 20), load)
    unstarted.revoke(["a-9"])
    unstarted.close()
    unstarted.revoke(["a-9"])


def test_a_deadline_ends_a_running_and_a_waiting_request(engine, monkeypatch):
    later = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr("prefix_engine.engine.time", clock)
    one = engine(rows=1)
    with lasting(one):
        soon = time.monotonic() + 1000.0
        running, _ = ask(one, max_tokens=LONG, deadline=soon)
        waiting, _ = ask(one, deadline=soon)
        wait_for(lambda: running.events)
        assert not running.ended
        assert not waiting.ended
        later[0] = 1000.0
        running.wait()
    assert running.wait().code == waiting.wait().code == "deadline"
    assert running.events[:-1]
    assert not waiting.events[:-1]


def test_a_deadline_passes_while_nothing_else_happens(engine):
    gate = threading.Event()
    one = engine(lambda i: gate.wait(PATIENCE_S) and load(i))
    sink, _ = ask(one, prefix_id="a-9", deadline=time.monotonic() + 0.1)
    assert sink.wait().code == "deadline"
    gate.set()


def test_who_asks_and_goes_away_keeps_nobody_out():
    one = Engine(BASE, EngineConfig(max_waiting=3, max_waiting_tokens=200), load)
    for _ in range(10):
        gone = [one.submit(Request((1, 2), 20, None), Collected()) for _ in range(3)]
        for generation in gone * 2:
            generation.cancel()
        sinks = [Collected() for _ in range(3)]  # nothing has turned the loop since
        for sink in sinks:
            one.submit(Request((1, 2), 20, None), sink)
        with pytest.raises(QueueFullError):
            one.submit(Request((1, 2), 20, None), Collected())
        while one.turn():
            pass
        assert [sink.wait().reason for sink in sinks] == ["length"] * 3
        assert one.stats().waiting == 0
    one.close()


def test_no_more_is_left_behind_than_could_wait():
    one = Engine(BASE, EngineConfig(max_waiting=3, max_waiting_tokens=200), load)
    for _ in range(6):
        one.submit(Request((1, 2), 1, None), Collected()).cancel()
    with pytest.raises(QueueFullError):
        one.submit(Request((1, 2), 1, None), Collected())
    while one.turn():
        pass
    one.submit(Request((1, 2), 1, None), Collected())
    one.close()


def test_a_failed_load_fails_only_the_requests_that_named_it(engine):
    def loader(prefix_id):
        if prefix_id == "bad":
            raise LoadRefused("corrupt", "the bytes are not those that were written")
        return load(prefix_id)

    one = engine(loader)
    bad = [ask(one, prefix_id="bad")[0] for _ in range(3)]
    good = [ask(one, prefix_id=i)[0] for i in ("a-9", None)]
    assert [sink.wait() for sink in bad] == [
        Failed("corrupt", "the bytes are not those that were written")
    ] * 3
    assert [sink.wait().reason for sink in good] == ["length"] * 2


def test_a_cold_prefix_delays_only_its_own_request(engine):
    gate = threading.Event()
    one = engine(lambda i: gate.wait(PATIENCE_S) and load(i), rows=2)
    cold, _ = ask(one, prefix_id="a-9", share="same")
    base, _ = ask(one, share="same")
    assert base.wait().reason == "length"
    assert not cold.ended
    gate.set()
    assert cold.wait().reason == "length"


def test_a_row_that_turns_non_finite_fails_alone_and_leaves_no_nan_behind(engine):
    huge = Prefix(torch.full((2, 2, 2, 4, 8), 3e38), 4, BASE.fingerprint)
    one = engine(lambda i: huge if i == "huge" else load(i), rows=8, kv_bytes=1 << 19)
    prompts = [tuple(range(n, n + 10)) for n in range(6)]
    expected = [ask(one, p, 20, prefix_id="a-9")[0] for p in prompts]
    for sink in expected:
        sink.wait()

    bad = [ask(one, p, 20, prefix_id="huge")[0] for p in prompts]
    beside = [ask(one, p, 20, prefix_id="a-9")[0] for p in prompts]
    after = [ask(one, p, 20, prefix_id="a-9")[0] for p in prompts]
    assert {sink.wait().code for sink in bad} == {"non_finite"}
    for sinks in (beside, after):
        assert [sink.wait().reason for sink in sinks] == ["length"] * 6
        assert [sink.tokens for sink in sinks] == [sink.tokens for sink in expected]


def test_a_prompt_that_is_not_finite_fails_when_it_is_scored(engine):
    huge = Prefix(torch.full((2, 2, 2, 4, 8), 3e38), 4, BASE.fingerprint)
    sink, _ = ask(engine(lambda _: huge), max_tokens=0, echo=True, logprobs=0, prefix_id="huge")
    assert sink.wait().code == "non_finite"


def test_a_long_prompt_does_not_stall_running_rows(engine):
    sampler, marks, asked = TeacherForced(), [], threading.Event()
    one = engine(sampler=sampler, rows=4, step_tokens=40, chunk_tokens=32)
    request = Request((1,), 300, None)
    sampler.expect(request, tuple(b"x" * 300))

    def mark(_):
        marks.append(one.stats().prefill_tokens)
        assert len(marks) < 6 or asked.wait(PATIENCE_S)  # it is not to end before the other has come

    running = Collected(mark)
    one.submit(request, running)
    wait_for(lambda: len(marks) > 5)
    long, _ = ask(one, tuple(i % 256 for i in range(2000)), 1)
    asked.set()
    running.wait()
    long.wait()
    between = [b - a for a, b in itertools.pairwise(marks)]
    assert max(between) == 32
    assert sum(between) >= 2000


def test_what_does_not_fit_the_context_is_refused_for_the_position_that_its_text_starts_at(engine):
    one = engine()
    positions = BASE.config.positions
    assert ask(one, (1,) * (positions - 3), 4)[0].wait().code == "context"
    assert ask(one, (1,) * (positions - 12), 4, prefix_id="a-9")[0].wait().code == "context"
    assert ask(one, (1,) * (positions - 13), 4, prefix_id="a-9")[0].wait() == Finished(
        "length", positions - 13, 4
    )


def test_a_prefix_whose_text_starts_at_zero_costs_no_positions(engine):
    one = engine(lambda _: random_prefix(BASE, 50, offset=0))
    prompt = (1,) * (BASE.config.positions - 2)
    assert ask(one, prompt, 2, prefix_id="a")[0].wait().reason == "length"


def test_a_request_larger_than_the_whole_memory_is_refused_not_queued_for_ever(engine):
    assert ask(engine(kv_bytes=1 << 16), (1,) * 2000, 4)[0].wait().code == "context"


def test_more_prefixes_than_the_pool_holds_are_served_all(engine):
    one = engine(pool_bytes=3 * 16 * 2 * 2 * 2 * 8 * 4, rows=6)
    sinks = [ask(one, max_tokens=8, prefix_id=f"{'n' * (i % 7)}-{9 + i % 30}")[0] for i in range(60)]
    assert {sink.wait().reason for sink in sinks} == {"length"}
    assert one.stats().pool_evictions > 0
    assert one.stats().resident_bytes <= 3 * 16 * 2 * 2 * 2 * 8 * 4


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError, SystemExit, BaseException])
def test_a_broken_sink_loses_its_row_and_stops_nothing(engine, caplog, error):
    one = engine()

    def broken(event):
        raise error("private text")

    ask(one, max_tokens=LONG, sink=broken)
    sink, _ = ask(one, max_tokens=30)
    assert sink.wait().reason == "length"
    wait_for(lambda: one.stats().running == 0)
    assert one.drain(120)
    assert "private text" not in caplog.text


@pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError])
def test_a_sink_that_breaks_at_a_refusal_stops_nothing(engine, error):
    one = engine()

    def broken(event):
        raise error

    with lasting(one):
        running, _ = ask(one, max_tokens=300)
        assert one.drain(0) is False
        ask(one, sink=broken)
    assert running.wait().reason == "length"
    assert one.drain(120)
    one.close()
    ask(one, sink=broken)
    assert one.drain(0)
    assert one.beat_age() == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_signal_that_falls_into_a_sink_reaches_who_turns_the_engine(error):
    one = Engine(BASE, EngineConfig(kv_bytes=1 << 20, pool_bytes=1 << 20), load)

    told = []

    def interrupted(event):
        told.append(event)
        if len(told) == 1:
            raise error

    ask(one, sink=interrupted)
    beside, _ = ask(one, (5, 6, 7), 9)
    with pytest.raises(error):
        one.turn()
    assert len(beside.tokens) == 1
    other, _ = ask(one)
    while one.turn():
        pass
    assert other.wait().reason == "length"
    assert told[-1].code == "cancelled"
    twin, _ = ask(one, (5, 6, 7), 9)
    while one.turn():
        pass
    assert beside.wait() == twin.wait()
    assert beside.tokens == twin.tokens
    assert len(beside.tokens) == 9
    one.close()


def left_over(engine):
    """What the last steps left in the memory that the next ones use again."""
    return engine._loop._runner._forward._scratch


def test_a_revocation_leaves_nothing_of_the_last_step(engine):
    one = engine(kernels="native")
    running, _ = ask(one, max_tokens=LONG, prefix_id="a-9")
    wait_for(lambda: running.events)
    one.revoke(["a-9"])
    assert running.wait().code == "revoked"
    assert len(left_over(one))
    assert not left_over(one).any()


def test_forgetting_a_caller_leaves_nothing_of_the_last_step(engine):
    one = engine(kernels="native")
    ask(one, max_tokens=3, reuse=("alice",))[0].wait()
    assert left_over(one).any()
    one.forget(["alice"])
    assert not left_over(one).any()


def test_what_runs_of_a_forgotten_caller_leaves_nothing_when_it_ends(engine):
    one = engine(kernels="native")
    running, _ = ask(one, max_tokens=200, reuse=("alice",))
    wait_for(lambda: running.events)
    one.forget(["alice"])
    assert running.wait().reason == "length"
    assert not left_over(one).any()


def test_draining_refuses_the_new_and_finishes_the_running(engine):
    one = engine()
    running, _ = ask(one, max_tokens=200)
    results = []
    drainer = threading.Thread(target=lambda: results.append(one.drain(120)))
    drainer.start()
    wait_for(lambda: one._draining)
    assert ask(one)[0].wait().code == "draining"
    drainer.join(120)
    assert results == [True]
    assert running.wait().reason == "length"


def test_draining_gives_up_after_its_time(engine):
    one = engine()
    ask(one, max_tokens=LONG)
    assert one.drain(0.01) is False


def test_close_ends_everything(engine):
    one = engine(rows=1)
    sinks = [ask(one, max_tokens=LONG, prefix_id="a-9")[0] for _ in range(3)]
    wait_for(lambda: sinks[0].events)
    one.close()
    assert {sink.wait().code for sink in sinks} == {"engine_stopped"}
    assert ask(one)[0].wait().code == "engine_stopped"
    assert one.drain(0)
    assert pages_are_zero(one)
    one.revoke(["a-9"])
    one.close()


def test_if_the_loop_fails_everything_fails_and_the_beat_stops(engine, caplog):
    class Faulty(TeacherForced):
        def pick(self, logits, sequences):
            raise MemoryError("no memory")

    one = engine(sampler=Faulty())
    with caplog.at_level(logging.CRITICAL):
        sinks = [ask(one, prefix_id=i)[0] for i in (None, "a-9")]
        assert {sink.wait().code for sink in sinks} == {"engine_stopped"}
    wait_for(lambda: one.beat_age() > 0.7)
    assert ask(one)[0].wait().code == "engine_stopped"
    one.revoke(["a-9"])


def test_an_idle_engine_keeps_beating(engine):
    one = engine()
    for _ in range(3):
        time.sleep(0.6)
        wait_for(lambda: one.beat_age() < 0.4)


def test_the_queue_is_bounded(engine):
    one = engine(rows=1, max_waiting=3)
    first, _ = ask(one, max_tokens=LONG)
    wait_for(lambda: first.events)
    for _ in range(3):
        ask(one)
    with pytest.raises(QueueFullError):
        ask(one)
    assert one.stats().waiting == 3


def test_the_queue_is_bounded_in_tokens(engine):
    one = engine(rows=1, max_waiting_tokens=100)
    first, _ = ask(one, max_tokens=LONG)
    wait_for(lambda: first.events)
    ask(one, max_tokens=60)
    assert one.stats().waiting_tokens == 63
    with pytest.raises(QueueFullError):
        ask(one, max_tokens=60)
    ask(one, max_tokens=34)
    assert one.stats().waiting_tokens == 100


def test_a_request_that_nothing_waits_before_is_taken_whatever_its_size(engine):
    one = engine(rows=1, max_waiting_tokens=1)
    assert isinstance(ask(one, max_tokens=5)[0].wait(), Finished)
    assert one.stats().waiting_tokens == 0


def test_a_request_whose_deadline_passes_while_it_waits_costs_no_step(engine):
    one = engine(rows=1)
    first, generation = ask(one, max_tokens=LONG)
    wait_for(lambda: first.events)
    before = one.stats().prefill_tokens
    late, waiting = ask(one, prompt=(7,) * 50, deadline=time.monotonic() + 0.05)
    assert late.wait().code == "deadline"
    assert not first.ended  # the only row was never free
    generation.cancel()
    first.wait()
    assert waiting.times.seated is None
    assert one.stats().prefill_tokens == before
    assert one.stats().waiting_tokens == 0


def test_a_deadline_is_looked_at_in_every_step(engine):
    one = engine(rows=2)
    neighbour, _ = ask(one, max_tokens=LONG)
    wait_for(lambda: neighbour.events)
    sink, _ = ask(one, max_tokens=LONG, deadline=time.monotonic() + 0.05)
    assert sink.wait().code == "deadline"
    assert len(sink.tokens) < LONG
    assert not neighbour.ended


@pytest.mark.parametrize(
    ("param", "settings"),
    [
        ("prompt", {"prompt": (257,)}),
        ("prompt", {"prompt": (-1,)}),
        ("end_id", {"end_id": 257}),
        ("logit_bias", {"sampling": Sampling(logit_bias={300: 1.0})}),
    ],
)
def test_tokens_that_the_base_does_not_have_are_refused_at_once(engine, param, settings):
    with pytest.raises(RequestError) as told:
        ask(engine(), **settings)
    assert told.value.param == param


def test_requests_from_many_threads_all_end_once(engine):
    one = engine(rows=8)
    sinks = []

    def client(number):
        for i in range(10):
            sink, generation = ask(
                one, max_tokens=10, prefix_id=f"a-{1 + (number + i) % 5}", share=str(number)
            )
            sinks.append(sink)
            if i % 3 == 0:
                generation.cancel()
            sink.wait()

    clients = [threading.Thread(target=client, args=(n,)) for n in range(6)]
    for one_client in clients:
        one_client.start()
    for one_client in clients:
        one_client.join(120)
    assert len(sinks) == 60
    assert all(sum(not isinstance(e, Delta) for e in sink.events) == 1 for sink in sinks)
    assert one.stats().pages_used == 0


@pytest.mark.parametrize(
    ("token", "best", "told"),
    [
        (7, ((END, -1.0), (9, -2.0)), ((END, "<|endoftext|>", -1.0), (9, "\t", -2.0), (7, "\x07", -3.0))),
        (9, ((7, -1.0), (9, -3.0)), ((7, "\x07", -1.0), (9, "\t", -3.0))),
        (9, (), ()),
    ],
)
def test_a_token_is_told_behind_the_best_if_it_is_none_of_them_and_special_ones_by_name(token, best, told):
    info = token_info(BASE.tokenizer, token, Score(-3.0, best))
    assert (info.logprob, info.top) == (-3.0, told)
