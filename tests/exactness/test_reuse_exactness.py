"""Rows that find their beginning in memory have the logits of rows that compute it, whatever is dropped between."""

import queue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixes import RowPlan, configs, row_plans, texts_are_zero
from oracle import answer

from prefix_engine import EngineConfig, Failed
from prefix_engine.kv import PagedMemory
from prefix_engine.loop import Loop
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, TeacherForced, base_over, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

both = pytest.mark.parametrize("kernels", ["native", "torch"])
calm = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
MODEL = tiny_model(layers=2, heads=2, width=16, seed=1, positions=640, spread=0.3)
BASE = base_over(MODEL)
PAGE_BYTES = PagedMemory(BASE.config, BASE.device, 16, 1, 1).page_bytes


class Mix:
    """One loop that is fed plan by plan, each row teacher-forced on what transformers says."""

    def __init__(self, plans, config):
        self.sampler, self.delivered = TeacherForced(), queue.SimpleQueue()
        prefixes = {plan.prefix_id: plan.prefix(BASE) for plan in plans}
        self.loop = Loop(BASE, config, prefixes.__getitem__, self.delivered.put, self.sampler)
        self.loop.pool.start()
        self.number = 0

    def add(self, plan):
        request, sink = plan.request, Collected()
        expected = answer(MODEL, plan.prefix(BASE), plan.prompt, plan.count)
        self.sampler.expect(request, expected.tokens)
        sequence = Sequence(self.number, request)
        self.number += 1
        self.loop.add(sequence, sink)
        return request, expected, sink, sequence

    def turn(self, times):
        for _ in range(times):
            if not self.loop.turn(0.0) and self.loop.pool.loading:
                self.loop.settle(self.delivered.get(timeout=120))

    def finish(self):
        while self.loop._rows:
            self.turn(1)

    def close(self):
        self.loop.pool.stop()
        self.loop.abandon("engine_stopped", "the engine has stopped")
        assert texts_are_zero(self.loop)

    def check(self, row, tally):
        request, expected, sink, _ = row
        if self.sampler.seen[id(request)]:
            logits = self.sampler.logits(request)
            tally.compare(expected, logits, logits.argmax(1).tolist())
        tally.note_reuse(sink)


@both
@calm
@given(data=st.data())
def test_rows_keep_their_logits_while_others_are_revoked_forgotten_and_cancelled(kernels, data, tally):
    plans = data.draw(st.lists(row_plans(BASE.config.vocab, longest_m=30), min_size=2, max_size=14))
    mix = Mix(plans, data.draw(configs(PAGE_BYTES, kernels)))
    rows, revoked, forgotten = [], set(), set()
    for plan in plans:
        rows.append((plan, mix.add(plan)))
        mix.turn(data.draw(st.sampled_from([0, 1, 5, 40])))
        happens = data.draw(st.sampled_from(["nothing", "nothing", "revoke", "forget", "cancel"]))
        other, row = data.draw(st.sampled_from(rows))
        if happens == "revoke" and other.prefix_id is not None:
            mix.loop.revoke({other.prefix_id})
            revoked.add(other.prefix_id)
            assert not mix.loop.cache.holds(other.prefix_id)
        elif happens == "forget" and other.reuse is not None:
            mix.loop.cache.forget({other.reuse[1]})
            forgotten.add(other.reuse[1])
        elif happens == "cancel":
            row[3].cancelled = True
    mix.finish()
    for plan, row in rows:
        mix.check(row, tally)
        last = row[2].events[-1]
        if isinstance(last, Failed):
            assert last.code in {"cancelled", "revoked"}
            assert last.code == "cancelled" or plan.prefix_id in revoked
    again = [(plan, mix.add(plan)) for plan, _ in rows]
    mix.finish()
    for plan, row in again:
        mix.check(row, tally)
        last = row[2].events[-1]
        if plan.prefix_id in revoked:
            assert last.code == "revoked"
        elif plan.reuse is None or plan.reuse[1] in forgotten:
            assert last.cached_tokens == 0
    mix.close()


@both
def test_a_repeated_prompt_is_found_by_its_own_caller_alone_and_says_the_same(kernels, tally):
    alice, bob = ("acme", "alice"), ("acme", "bob")
    prompt = tuple(range(70))

    def plan(reuse, m, prompt=prompt):
        return RowPlan(m, True, 0, prompt, 6, 0, None, reuse)

    kinds = [plan(reuse, m) for m in (0, 10, 20) for reuse in (alice, bob, None)]
    mix = Mix(kinds, EngineConfig(kv_bytes=400 * PAGE_BYTES, pool_bytes=1 << 20, kernels=kernels))
    found = []
    for one in [*kinds, *kinds, plan(alice, 10, (*prompt[:40], 1, 2)), plan(alice, 10, (5, *prompt))]:
        row = mix.add(one)
        mix.finish()
        mix.check(row, tally)
        found.append(row[2].events[-1].cached_tokens)
    assert found == [0] * 9 + [64, 64, 0] * 3 + [32, 0]
    mix.close()


@both
def test_a_conversation_finds_its_earlier_answers(kernels, tally):
    text = tuple(range(20))
    mix = Mix([], EngineConfig(kv_bytes=400 * PAGE_BYTES, pool_bytes=1 << 20, kernels=kernels))
    for turn in range(5):
        plan = RowPlan(0, True, 0, text, 30, 0, None, ("acme", "alice"))
        row = mix.add(plan)
        mix.finish()
        mix.check(row, tally)
        # The answer's last token was never fed back, and two are new.
        assert row[2].events[-1].cached_tokens == ((len(text) - 3) // 16 * 16 if turn else 0)
        text = (*text, *row[1].tokens, turn, turn)
    mix.close()


@both
def test_a_prompt_is_found_while_its_row_still_answers(kernels, tally):
    plan = RowPlan(0, True, 0, tuple(range(40)), 6, 0, None, ("acme", "alice"))
    mix = Mix([plan], EngineConfig(kv_bytes=400 * PAGE_BYTES, kernels=kernels))
    first = mix.add(plan)
    mix.turn(2)
    second = mix.add(plan)
    mix.turn(1)
    assert not first[2].ended
    assert second[3].pages[:2] == first[3].pages[:2]
    mix.finish()
    for row in (first, second):
        mix.check(row, tally)
    mix.close()


@both
def test_a_prompt_cancelled_half_way_is_not_kept_and_who_waited_for_it_computes_it(kernels, tally):
    plan = RowPlan(0, True, 0, tuple(range(40)), 6, 0, None, ("acme", "alice"))
    mix = Mix([plan], EngineConfig(kv_bytes=400 * PAGE_BYTES, kernels=kernels, chunk_tokens=1))
    first, second, third = (mix.add(plan) for _ in range(3))
    mix.turn(35)
    assert mix.loop.scheduler.running == {0: first[3]}
    first[3].cancelled = True
    mix.turn(1)
    assert mix.loop.cache.idle == 0
    mix.finish()
    for row in (second, third):
        mix.check(row, tally)
    assert [row[2].events[-1].cached_tokens for row in (second, third)] == [0, 32]
    mix.close()


@both
def test_what_a_row_that_is_not_finite_computed_is_not_kept(kernels):
    plans = [RowPlan(20, True, 0, tuple(range(40)), 6, 0, None, ("acme", name)) for name in ("alice", "bob")]
    mix = Mix(plans, EngineConfig(kv_bytes=400 * PAGE_BYTES, kernels=kernels, chunk_tokens=1))
    sinks = [Collected() for _ in plans]
    for number, (plan, sink) in enumerate(zip(plans, sinks, strict=True)):
        mix.loop.add(Sequence(number, plan.request), sink)
    while (resident := mix.loop.pool.get(plans[0].prefix_id)) is None:
        mix.turn(1)
    for values in mix.loop.memory.values:
        values[resident.pages[0], :, 0] = float("nan")
    mix.finish()
    assert [sink.events[-1].code for sink in sinks] == ["non_finite"] * 2
    assert mix.loop.memory.row_pages.used == 0
    mix.close()
