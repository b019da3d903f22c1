"""What is gone is remembered an hour, and longer while something under way names it."""

from hypothesis import given
from hypothesis import strategies as st

from prefix_engine import Engine, EngineConfig, LoadRefused, Request
from prefix_engine.gone import REMEMBERED_S, Gone
from prefix_engine.testing import Collected, random_prefix, tiny_base

ACTS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.floats(0, REMEMBERED_S), st.sets(st.sampled_from("abcdef"))),
    max_size=40,
)


@given(ACTS)
def test_nothing_is_forgotten_within_an_hour_or_while_it_is_named_and_the_rest_goes(acts):
    now, named, added = 0.0, set(), {}
    gone = Gone(lambda: named, lambda: now)
    for one, later, names in acts:
        now, named = now + later, names
        old = {i for i, at in added.items() if now - at >= REMEMBERED_S}
        added = {i: now if i in old else at for i, at in added.items() if i not in old or i in named}
        added[one] = now
        gone.add([one])
        assert {i for i in "abcdef" if i in gone} == set(added)
        assert gone.any_of("abcdef")
        assert not gone.any_of("xyz")
    assert len(gone) <= 6


def test_a_running_callers_text_is_not_kept_however_long_ago_he_was_forgotten(monkeypatch):
    base, now = tiny_base(), [1000.0]
    config = EngineConfig(rows=4, kv_bytes=1 << 20, pool_bytes=1 << 20, prompt_cache_s=1e9)
    one = Engine(base, config, lambda _: random_prefix(base, 4))
    monkeypatch.setattr(one._loop.cache._gone, "_clock", lambda: now[0])

    def ask(caller):
        sink = Collected()
        one.submit(Request((7,) * 40, 3, None, reuse=("acme", caller)), sink)
        return sink

    slow = ask("alice")
    one.turn()
    one._loop.cache.forget({"alice"})
    for _ in range(5):
        now[0] += REMEMBERED_S
        one._loop.cache.forget({"bob"})
    while not slow.ended:
        one.turn()
    assert one._loop.cache.idle == 0
    now[0] += REMEMBERED_S
    one._loop.cache.forget({"bob"})
    assert "alice" not in one._loop.cache._gone
    one.close()


def test_a_prefix_that_was_revoked_long_ago_is_the_loaders_to_refuse(monkeypatch):
    there = {"p"}

    def load(prefix_id):
        if prefix_id not in there:
            raise LoadRefused("revoked", "the version is gone")
        return random_prefix(base, 4)

    base, now = tiny_base(), [1000.0]
    one = Engine(base, EngineConfig(rows=4, kv_bytes=1 << 20, pool_bytes=1 << 20), load)
    monkeypatch.setattr(one._loop.pool._revoked, "_clock", lambda: now[0])
    one.start()

    def ask():
        sink = Collected()
        one.submit(Request((1, 2), 2, None, prefix_id="p"), sink)
        return sink.wait()

    assert ask().reason == "length"
    there.clear()
    one.revoke(["p"])
    assert ask().code == "revoked"
    assert one.stats().pool_misses == 1
    now[0] += 2 * REMEMBERED_S
    one.revoke(["q"])
    assert not one._loop.pool.is_revoked("p")
    assert ask().code == "revoked"
    one.close()
