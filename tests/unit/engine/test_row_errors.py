"""What raises for one row fails that row; the others get what they get without it."""

import threading
import weakref

import pytest
import torch
from waiting import wait_until

from prefix_engine import Delta, Failed, Finished, Request, Sampling, runner
from prefix_engine.batch_sampling import BatchSampler
from prefix_engine.sampling import RowSampler
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, random_prefix, tiny_base

BASE = tiny_base(positions=512)
SAMPLERS = pytest.mark.parametrize("sampler", [RowSampler, BatchSampler])
NEIGHBOURS = [
    Sampling(),
    Sampling(temperature=1.0, seed=5),
    Sampling(temperature=1.3, top_p=0.8, seed=6, frequency_penalty=0.5),
    Sampling(temperature=0.7, top_k=20, seed=7, logit_bias={4: 1.0}),
]


@pytest.fixture
def engine(started):
    limits = {"rows": 8, "kv_bytes": 16 << 20, "pool_bytes": 1 << 20}
    return lambda sampler=RowSampler, loader=None, **more: started(
        BASE, loader, sampler=sampler(), **limits, **more
    )


def submitted(engine, sampling, on_event=None, **settings):
    sink = Collected(on_event)
    engine.submit(Request((1, 2, 3), 40, None, sampling=sampling, logprobs=2, **settings), sink)
    return sink


def no_token():
    """A bias that its owner changes after he was believed: the base has no such token."""
    return {4: 1.0, 10**6: 1.0}


@SAMPLERS
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_whose_choice_raises_says_so_and_the_others_are_chosen_as_without_it(sampler, temperature):
    logits = torch.randn(5, BASE.config.vocab, generator=torch.Generator().manual_seed(0))

    def pick(bias):
        wishes = [*NEIGHBOURS[:2], Sampling(temperature=temperature, logit_bias=bias), *NEIGHBOURS[2:]]
        rows = [
            Sequence(i, Request((1,), 9, None, sampling=s, logprobs=3), i, generated=[4])
            for i, s in enumerate(wishes)
        ]
        one = sampler()
        return [one.pick(logits.clone(), rows) for _ in range(3)]

    for calm, beside in zip(pick({4: 1.0}), pick(no_token()), strict=True):
        assert isinstance(beside[2].error, IndexError)
        assert beside[2].token is None
        assert beside[:2] + beside[3:] == calm[:2] + calm[3:]


@SAMPLERS
def test_a_row_whose_choice_raises_while_it_runs_fails_alone(engine, sampler):
    expected = [submitted(engine(sampler), sampling) for sampling in NEIGHBOURS]
    for sink in expected:
        sink.wait()
    one, bias = engine(sampler), {4: 1.0}
    spoilt = submitted(one, Sampling(logit_bias=bias), lambda _: bias.update(no_token()))
    sinks = [submitted(one, sampling) for sampling in NEIGHBOURS]
    assert spoilt.wait().code == "internal"
    assert spoilt.tokens
    for sink, calm in zip(sinks, expected, strict=True):
        assert sink.wait() == calm.wait()
        assert sink.tokens == calm.tokens
    assert submitted(one, Sampling()).wait().reason == "length"
    assert one.stats().pages_used == 0


def test_a_prompt_whose_scoring_raises_fails_alone(engine, monkeypatch):
    scores_of = runner.scores_of

    def scarce(logprobs, tokens, top):
        if 99 in tokens:
            raise MemoryError
        return scores_of(logprobs, tokens, top)

    one = engine()
    calm = submitted(one, NEIGHBOURS[1], echo=True)
    calm.wait()
    monkeypatch.setattr(runner, "scores_of", scarce)
    failed, beside = Collected(), submitted(one, NEIGHBOURS[1], echo=True)
    one.submit(Request((1, 99), 4, None, echo=True, logprobs=1), failed)
    assert failed.wait().code == "internal"
    assert beside.wait() == calm.wait()
    assert beside.tokens == calm.tokens


def test_what_raises_while_a_row_ends_is_told_once_and_the_others_go_on(engine):
    class Forgetful(RowSampler):
        def forget(self, sequence):
            if sequence.request.max_tokens == 7:
                raise MemoryError
            super().forget(sequence)

    one = engine(Forgetful)
    spoilt, beside = Collected(), submitted(one, NEIGHBOURS[1])
    one.submit(Request((1, 2, 3), 7, None), spoilt)
    assert spoilt.wait().reason == "length"
    assert beside.wait().reason == "length"
    assert submitted(one, Sampling()).wait().reason == "length"
    assert one.stats().pages_used == 0
    assert len([event for event in spoilt.events if not isinstance(event, Delta)]) == 1
    assert one.drain(60)


def test_an_answer_of_which_a_piece_was_lost_is_not_called_whole(engine):
    def failing(event):
        if hasattr(event, "tokens"):
            raise MemoryError

    lost = Collected(failing)
    engine().submit(Request((1, 2, 3), 1, None), lost)
    assert lost.wait().code == "cancelled"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_revocation_that_raises_ends_the_engine_and_nobody_waits_for_ever(engine, monkeypatch, error):
    def raising(_):
        raise error

    one = engine()
    beside = submitted(one, NEIGHBOURS[1])
    monkeypatch.setattr(one._loop.pool, "erase", raising)
    threads = [
        threading.Thread(target=one.revoke, args=({"a"},)),
        threading.Thread(target=one.forget, args=({"b"},)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert isinstance(beside.wait(120), Failed | Finished)
    assert one.beat_age() == float("inf")


def test_a_loader_that_panics_fails_its_requests_and_loads_on(engine):
    class PanicError(BaseException):
        """As a library in Rust raises it."""

    def load(prefix_id):
        if prefix_id == "bad":
            raise PanicError
        return random_prefix(BASE, 3)

    one = engine(loader=load, load_threads=1)
    for prefix_id, ended in (("bad", Failed), ("good", Finished)):
        sink = Collected()
        one.submit(Request((1, 2), 3, None, prefix_id=prefix_id), sink)
        assert isinstance(sink.wait(), ended)
    one.revoke({"bad", "good"})


def test_a_loader_thread_that_waits_keeps_no_prefix(engine):
    kept = []

    def load(prefix_id):
        found = random_prefix(BASE, 3)
        kept.append(weakref.ref(found.tensor))
        return found

    one = engine(loader=load)
    sink = Collected()
    one.submit(Request((1, 2), 3, None, prefix_id="voice"), sink)
    sink.wait()
    wait_until(lambda: kept[0]() is None)


def test_a_closed_engine_does_not_start_again(engine):
    one = engine()
    one.close()
    with pytest.raises(RuntimeError, match="make another"):
        one.start()


@SAMPLERS
def test_a_temperature_that_is_a_whole_number_is_one_however_large(sampler):
    row = Sequence(1, Request((1,), 9, None, sampling=Sampling(temperature=10**25, top_p=0.5)), 3)
    (pick,) = sampler().pick(torch.randn(1, 50, generator=torch.Generator().manual_seed(0)), [row])
    assert pick.token is not None
