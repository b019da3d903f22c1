"""The sampler over the batch chooses what the sampler row by row chooses."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from prefix_engine.batch_sampling import BatchSampler
from prefix_engine.request import Request, Sampling
from prefix_engine.sampling import RowSampler
from prefix_engine.sequence import Sequence

VOCAB = 600
SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.0, 1e-6, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 5, 300, VOCAB, 4 * VOCAB, 10**400]),
    top_p=st.sampled_from([1e-9, 0.05, 0.7, 0.999, 1.0, 1.0]),
    min_tokens=st.sampled_from([0, 5]),
    presence_penalty=st.sampled_from([0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, -0.5]),
    logit_bias=st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-20, 20), max_size=3),
)
ROWS = st.tuples(
    SAMPLINGS,
    st.integers(0, 1 << 40),
    st.lists(st.integers(0, VOCAB - 1), max_size=4),
    st.one_of(st.none(), st.none(), st.integers(0, 5)),
)


def logits_of(rows, spread=3.0, seed=0):
    return torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def sequences_of(rows):
    return [
        Sequence(
            number,
            Request((1,), 9, 7, sampling=sampling, logprobs=logprobs),
            seed,
            generated=list(generated),
        )
        for number, (sampling, seed, generated, logprobs) in enumerate(rows)
    ]


@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(ROWS, min_size=1, max_size=9),
    spread=st.sampled_from([0.3, 3.0, 30.0]),
    seed=st.integers(0, 1000),
    broken=st.sets(st.integers(0, 8), max_size=2),
)
def test_a_batch_is_chosen_as_its_rows_are(rows, spread, seed, broken):
    one, other = RowSampler(), BatchSampler()
    for step in range(2):
        logits = logits_of(len(rows), spread, seed + step)
        for place in broken & set(range(len(rows))):
            logits[place, 3] = math.nan
        alone = one.pick(logits.clone(), sequences_of(rows))
        together = other.pick(logits.clone(), sequences_of(rows))
        assert [pick.token for pick in together] == [pick.token for pick in alone]
        for pick, expected in zip(together, alone, strict=True):
            assert (pick.score is None) == (expected.score is None)
            if expected.score is not None:
                assert pick.score.logprob == pytest.approx(expected.score.logprob, abs=1e-5)
                assert [token for token, _ in pick.score.top] == [token for token, _ in expected.score.top]
                values = [value for _, value in expected.score.top]
                assert [value for _, value in pick.score.top] == pytest.approx(values, abs=1e-5)


def test_more_rows_than_are_drawn_at_once():
    rows = [(Sampling(temperature=1.0, top_k=number % 3 * 7), number, [], None) for number in range(150)]
    logits = logits_of(150)
    alone = RowSampler().pick(logits.clone(), sequences_of(rows))
    assert BatchSampler().pick(logits.clone(), sequences_of(rows)) == alone


@pytest.mark.parametrize("loud", [math.nan, math.inf, -math.inf, 1e30])
def test_a_neighbour_changes_nothing_of_a_rows_choice(loud):
    rows = [(Sampling(temperature=1.0, top_p=p), 5, [], 3) for p in (1.0, 0.9, 1.0)]
    calm, beside = logits_of(3), logits_of(3)
    beside[1] = loud
    quiet = BatchSampler().pick(calm, sequences_of(rows))
    picks = BatchSampler().pick(beside, sequences_of(rows))
    assert [picks[0], picks[2]] == [quiet[0], quiet[2]]
    if loud != 1e30:
        assert picks[1].token is None


class Waits(TorchDispatchMode):
    """Counts how often something on the device is read by the host."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.count += func in {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}
        return func(*args, **(kwargs or {}))


def test_a_step_is_read_once_whatever_its_rows_ask_for(monkeypatch):
    read = []
    tolist = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: read.append(tensor.shape) or tolist(tensor))
    rows = [
        (Sampling(temperature=t, top_k=k, top_p=p, presence_penalty=0.5), 1, [3, 4], logprobs)
        for t, k, p, logprobs in [(0.0, 0, 1.0, None), (1.0, 5, 0.9, 4), (0.7, 0, 1.0, 0), (0.0, 0, 1.0, 2)]
    ]
    with Waits() as waits:
        BatchSampler().pick(logits_of(4), sequences_of(rows))
    drawn = 2  # points of the two generators, which are the CPU's everywhere
    assert len(read) == 1
    assert waits.count == drawn
