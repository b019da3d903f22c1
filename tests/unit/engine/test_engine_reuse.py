"""Who finds whose texts in an engine, and what is left of them; with real threads and a tiny base."""

import threading

import pytest

from prefix_engine import EngineConfig, Request
from prefix_engine.loop import Loop
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, random_prefix, tiny_base

BASE = tiny_base(positions=512)
PROMPT = tuple(range(100))
ALICE, BOB = ("acme", "alice"), ("acme", "bob")


@pytest.fixture
def engine(started):
    def loader(_):
        return random_prefix(BASE, 10, offset=0, spread=0.5)

    return lambda **limits: started(BASE, loader, **{"kv_bytes": 8 << 20, "pool_bytes": 1 << 20, **limits})


def submit(engine, prefix_id=None, reuse=ALICE, prompt=PROMPT, tokens=8, **settings):
    sink = Collected()
    request = Request(prompt, tokens, None, prefix_id=prefix_id, reuse=reuse, **settings)
    return sink, engine.submit(request, sink)


def cached(engine, *args, **settings):
    return submit(engine, *args, **settings)[0].wait().cached_tokens


def zeroed(engine):
    memory = engine._loop.memory
    return not bool(memory.content[: 1 + memory.row_pages.total].any())


def test_a_repeated_prompt_is_reused_and_counted(engine):
    one = engine()
    first, _ = submit(one, "p", share="a")
    first.wait()
    second, _ = submit(one, "p", share="b")
    assert second.wait().cached_tokens == 96
    assert second.tokens == first.tokens
    stats = one.stats()
    assert (stats.prompt_cache_hits, stats.prompt_cache_tokens, stats.prefill_tokens) == (1, 96, 104)
    assert stats.pages_used == 0
    assert stats.pages_cached == 6


def test_rows_of_one_prompt_that_come_together_compute_it_once(engine):
    one = engine(step_tokens=64, chunk_tokens=16)
    sinks = [submit(one)[0] for _ in range(8)]
    assert sorted(sink.wait().cached_tokens for sink in sinks) == [0, *[96] * 7]
    assert len({sink.tokens for sink in sinks}) == 1
    assert one.stats().prefill_tokens == 100 + 7 * 4


@pytest.mark.parametrize("prefix_id", [None, "task"])
def test_the_same_prompt_of_another_user_of_the_same_prefix_finds_nothing(engine, prefix_id):
    one = engine()
    assert cached(one, prefix_id) == 0
    assert cached(one, prefix_id, BOB) == 0
    assert cached(one, prefix_id, None) == 0
    assert cached(one, prefix_id) == cached(one, prefix_id, BOB) == 96


def test_prefixes_and_the_base_share_no_text(engine):
    one = engine()
    assert [cached(one, prefix_id) for prefix_id in ("p", "q", None, "p", "q", None)] == [0, 0, 0, 96, 96, 96]


def test_a_revoked_prefix_leaves_no_text_and_no_page(engine):
    one = engine()
    for reuse in (ALICE, BOB):
        cached(one, "p", reuse)
    running, _ = submit(one, "p", tokens=400)
    assert one.holds({"p"}) == {"p"}
    one.revoke({"p"})
    assert running.wait().code == "revoked"
    assert one.holds({"p"}) == set()
    assert one.stats().pages_cached == 0
    assert zeroed(one)


def test_who_is_forgotten_leaves_no_text_behind_any_prefix(engine):
    one = engine()
    for prefix_id in (None, "task"):
        cached(one, prefix_id)
    one.forget({"alice"})
    assert one.stats().pages_cached == 0
    assert zeroed(one)
    assert [cached(one), cached(one)] == [0, 0]
    assert zeroed(one)


def test_forgetting_one_keeps_the_others_and_a_tenant_takes_all_of_it(engine):
    one = engine()
    for reuse in (ALICE, BOB, ("other", "alice2")):
        cached(one, reuse=reuse)
    one.forget({"bob"})
    assert [cached(one, reuse=reuse) for reuse in (ALICE, BOB, ("other", "alice2"))] == [96, 0, 96]
    one.forget({"acme"})
    assert [cached(one, reuse=reuse) for reuse in (ALICE, BOB, ("other", "alice2"))] == [0, 0, 96]


def test_a_running_row_of_who_is_forgotten_leaves_nothing_when_it_ends(engine):
    one = engine()
    cached(one)
    started = threading.Event()
    sink = Collected(lambda _: started.set())
    one.submit(Request(PROMPT, 300, None, reuse=ALICE), sink)
    started.wait(30)
    one.forget({"alice"})
    assert sink.wait().cached_tokens == 96
    assert one.drain(120)
    assert one.stats().pages_cached == 0
    assert zeroed(one)


def test_an_evicted_prefix_keeps_its_texts_since_a_version_never_changes(engine):
    one = engine(pool_bytes=1)
    assert cached(one, "p") == 0
    cached(one, "q")
    assert one.stats().pool_evictions == 1
    assert cached(one, "p") == 96
    one.revoke({"p", "q"})
    assert zeroed(one)


def test_kept_texts_make_room_for_whoever_needs_it(engine):
    one = engine(kv_bytes=40 * 16 * 2 * 2 * 2 * 8 * 4, rows=4)
    for number in range(30):
        sinks = [submit(one, prompt=(number, i, *PROMPT), tokens=20, reuse=(str(i),))[0] for i in range(4)]
        assert {sink.wait().reason for sink in sinks} == {"length"}
    stats = one.stats()
    assert 0 < stats.pages_cached <= stats.pages_total <= 40


def test_kept_texts_are_zeroed_after_their_time_also_when_nothing_else_happens(engine):
    one = engine(prompt_cache_s=0.2)
    cached(one)
    done = threading.Event()
    for _ in range(600):
        if one.stats().pages_cached == 0:
            done.set()
            break
        threading.Event().wait(0.1)
    assert done.is_set()
    assert zeroed(one)


def test_it_can_be_switched_off(engine):
    one = engine(prompt_cache_s=0)
    assert cached(one) == cached(one) == 0
    assert zeroed(one)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(seconds):
    with pytest.raises(ValueError, match="prompt_cache_s"):
        EngineConfig(prompt_cache_s=seconds)


def test_a_scored_prompt_is_computed_whole_and_all_its_scores_come(engine):
    one = engine()
    cached(one)
    sink, _ = submit(one, echo=True, logprobs=1, tokens=2)
    assert sink.wait().cached_tokens == 0
    assert all(info.logprob is not None for info in sink.infos[1:])
    echoed, _ = submit(one, echo=True, tokens=2)
    assert echoed.wait().cached_tokens == 96
    assert echoed.tokens == sink.tokens


def test_closing_leaves_nothing(engine):
    one = engine()
    cached(one)
    one.close()
    assert zeroed(one)
    one.forget({"alice"})


def test_a_forgotten_callers_prompt_is_not_awaited():
    """What runs of it will not be kept, so that who waited would compute it all the same, and later."""
    loop = Loop(BASE, EngineConfig(rows=4, kv_bytes=8 << 20, pool_bytes=1 << 20, chunk_tokens=16), None, None)
    rows = [Sequence(number, Request(PROMPT, 3, None, reuse=ALICE)) for number in range(2)]
    loop.add(rows[0], Collected())
    loop.turn(0.0)
    assert 0 < rows[0].computed < len(PROMPT)
    loop.forget({"alice"})
    loop.add(rows[1], Collected())
    loop.turn(0.0)
    assert rows[1].computed > 0


def test_an_engine_with_nothing_to_do_erases_all_old_texts_before_it_rests():
    loop = Loop(BASE, EngineConfig(kv_bytes=8 << 20, pool_bytes=1 << 20, prompt_cache_s=10), None, None)
    sinks = [Collected() for _ in range(30)]
    for number, sink in enumerate(sinks):
        prompt = (number, *PROMPT[1:])
        loop.add(Sequence(number, Request(prompt, 3, None, reuse=ALICE)), sink)
    while loop.turn(1.0):
        pass
    assert all(sink.ended for sink in sinks)
    assert loop.cache.idle > 2 * 64
    assert not loop.turn(10.9)
    while loop.turn(11.0):
        pass
    assert loop.cache.idle == 0
    assert not loop.memory.content[: 1 + loop.memory.row_pages.total].any()
