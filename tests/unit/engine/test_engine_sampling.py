import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_engine.batch_sampling import BatchSampler
from prefix_engine.request import Request, RequestError, Sampling
from prefix_engine.sampling import RowSampler, adjust, draw, wish_of
from prefix_engine.sequence import Sequence

VOCAB = 1000


def logits_of(seed=0, rows=1, spread=3.0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def row(number=1, *, seed=0, generated=(), end_id=None, logprobs=None, **sampling):
    request = Request((1,), 9, end_id, sampling=Sampling(**sampling), logprobs=logprobs)
    return Sequence(number, request, seed, generated=list(generated))


def draws(logits, count, **sampling):
    generator = torch.Generator().manual_seed(0)
    wished = Sampling(**{"temperature": 1.0, **sampling})
    return [draw(logits, wish_of(wished, generator, len(logits))) for _ in range(count)]


def test_greedy_takes_the_best_token():
    logits = logits_of(rows=5)
    picks = RowSampler().pick(logits.clone(), [row(i) for i in range(5)])
    assert [pick.token for pick in picks] == logits.argmax(1).tolist()


def test_a_row_draws_the_same_whoever_sits_beside_it():
    logits = logits_of(rows=6)
    alone, beside = RowSampler(), RowSampler()
    for _ in range(5):
        (single,) = alone.pick(logits[2:3].clone(), [row(2, seed=42, temperature=1.0)])
        crowd = [row(i, seed=i, temperature=1.5 * (i % 2)) for i in range(6)]
        crowd[2] = row(2, seed=42, temperature=1.0)
        assert beside.pick(logits.clone(), crowd)[2] == single


def test_seeds_decide_the_draws():
    logits = logits_of()[0]

    def text(seed):
        generator = torch.Generator().manual_seed(seed)
        return [draw(logits, wish_of(Sampling(temperature=1.0), generator, VOCAB)) for _ in range(20)]

    assert text(1) == text(1)
    assert text(1) != text(2)


def test_a_row_that_ended_leaves_no_generator_behind():
    sampler, sequence = RowSampler(), row(1, temperature=1.0)
    sampler.pick(logits_of(), [sequence])
    sampler.forget(sequence)
    assert not sampler._generators


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    counts = torch.bincount(torch.tensor(draws(logits, 20_000)), minlength=4) / 20_000
    assert torch.allclose(counts, logits.exp(), atol=0.015)


def test_temperature_sharpens_and_flattens():
    logits = torch.tensor([0.6, 0.4]).log()
    ones = [sum(draws(logits, 4000, temperature=t)) / 4000 for t in (0.1, 1.0, 10.0)]
    assert ones[0] < 0.05
    assert 0.35 < ones[1] < 0.45
    assert 0.45 < ones[2] < 0.55


@settings(deadline=None)
@given(st.floats(1e-300, 1e300), st.integers(0, 50))
def test_no_temperature_breaks_a_draw(temperature, seed):
    assert 0 <= draws(logits_of(seed)[0], 1, temperature=temperature)[0] < VOCAB


@pytest.mark.parametrize("sampler", [RowSampler(), BatchSampler()])
@pytest.mark.parametrize("amount", [1e30, -1e30])
def test_no_bias_and_no_penalty_breaks_a_draw(sampler, amount):
    wishes = {"presence_penalty": -amount, "frequency_penalty": -amount, "logit_bias": {3: amount}}
    one = row(generated=(3,) * 100, end_id=7, min_tokens=200, temperature=1.0, **wishes)
    all_alike = row(temperature=1.0, logit_bias=dict.fromkeys(range(VOCAB), amount))
    for sequence in (one, all_alike):
        (pick,) = sampler.pick(logits_of(), [sequence])
        assert pick.token is not None
        assert 0 <= pick.token < VOCAB
        assert sequence is all_alike or (pick.token == 3) == (amount > 0)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(1, VOCAB + 5), st.floats(0.01, 1.0), st.floats(0.1, 5.0))
def test_draws_stay_within_top_k_and_top_p(seed, top_k, top_p, temperature):
    logits = logits_of(seed)[0]
    order = logits.argsort(descending=True)[:top_k]
    shares = torch.softmax(logits[order].double() / temperature, 0)
    allowed = set(order[shares.cumsum(0) - shares < top_p + 1e-6].tolist())
    assert set(draws(logits, 10, top_k=top_k, top_p=top_p, temperature=temperature)) <= allowed


def test_top_p_reaches_beyond_the_head_where_the_distribution_is_flat():
    logits = torch.zeros(VOCAB)
    assert len(set(draws(logits, 6000, top_p=0.95))) > 900


def test_top_k_of_one_is_greedy_at_any_temperature():
    logits = logits_of()[0]
    assert set(draws(logits, 20, top_k=1, temperature=5.0)) == {int(logits.argmax())}


def test_penalties_take_off_what_openai_says():
    logits = torch.zeros(VOCAB)
    adjust(logits, row(generated=[5, 5, 5, 7], presence_penalty=0.5, frequency_penalty=0.25))
    assert logits[5] == -(0.5 + 3 * 0.25)
    assert logits[7] == -(0.5 + 0.25)
    assert logits.count_nonzero() == 2


def test_bias_is_added():
    logits = torch.zeros(VOCAB)
    adjust(logits, row(logit_bias={3: 2.5, 4: -100.0}))
    assert logits[3] == 2.5
    assert logits[4] == -100
    assert logits.count_nonzero() == 2


@pytest.mark.parametrize(("generated", "allowed"), [(0, False), (2, False), (3, True)])
def test_the_end_token_cannot_be_chosen_before_min_tokens(generated, allowed):
    logits = torch.zeros(1, VOCAB)
    logits[0, 9] = 50.0
    (pick,) = RowSampler().pick(logits, [row(generated=[1] * generated, end_id=9, min_tokens=3)])
    assert (pick.token == 9) is allowed


def test_log_probabilities_are_those_of_the_raw_logits():
    logits = logits_of()
    expected = torch.log_softmax(logits[0], 0)
    sequence = row(logprobs=3, temperature=2.0, seed=1, logit_bias={5: 100.0})
    (pick,) = RowSampler().pick(logits.clone(), [sequence])
    assert pick.token == 5
    assert math.isclose(pick.score.logprob, float(expected[5]), abs_tol=1e-6)
    assert [i for i, _ in pick.score.top] == expected.topk(3).indices.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_only_the_row_whose_logits_are_not_finite_gets_no_token(bad):
    logits = logits_of(rows=3)
    logits[1, 77] = bad
    picks = RowSampler().pick(logits, [row(i, temperature=i % 2, logprobs=1) for i in range(3)])
    assert [pick.token is None for pick in picks] == [False, True, False]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_p", math.nan),
        ("seed", 1 << 63),
        ("min_tokens", -1),
        ("presence_penalty", math.nan),
        ("frequency_penalty", math.inf),
        ("frequency_penalty", -1e308),
        ("logit_bias", {1: math.nan}),
        ("logit_bias", {1: 1e39}),
    ],
)
def test_settings_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(RequestError) as told:
        Sampling(**{name: value})
    assert told.value.param == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ()),
        ("max_tokens", -1),
        ("stop", ("",)),
        ("stop", ("x" * 257,)),
        ("logprobs", 6),
        ("logprobs", -1),
        ("deadline", math.nan),
    ],
)
def test_requests_out_of_range_are_refused_by_name(name, value):
    with pytest.raises(RequestError) as told:
        Request(**{"prompt": (1,), "max_tokens": 1, "end_id": None, name: value})
    assert told.value.param == name
