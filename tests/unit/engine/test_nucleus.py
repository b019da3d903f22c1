"""A draw is what it is by definition: all tokens sorted, cut by top_k and top_p, the sum of shares inverted."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from prefix_engine import nucleus
from prefix_engine.kernels import KernelError, kernels_for
from prefix_engine.request import Sampling
from prefix_engine.sampling import Wish, draw, draw_each, wish_of

VOCAB = 3000
SEEDS = st.integers(0, 1 << 40)
TOP_P = st.one_of(st.just(1.0), st.floats(1e-6, 1.0), st.sampled_from([0.5, 0.9, 0.99, 1 - 1e-12]))
TEMPERATURES = st.sampled_from([1e-300, 1e-3, 0.3, 1.0, 2.0, 50.0, 1e300])
SHAPES = st.sampled_from(["flat", "steep", "ties", "equal", "cut", "outlier", "zeros"])
ROUNDING = 1e-9


def logits_of(shape, seed):
    chance = torch.Generator().manual_seed(seed)
    normal = torch.randn(VOCAB, generator=chance)
    return {
        "flat": normal,
        "steep": 6 * normal,
        "ties": (2 * normal).round() / 2,
        "equal": torch.zeros(VOCAB),
        "zeros": torch.where(normal > 1, 0.0, (normal.clamp(max=0) / 2).round()),  # 0 and -0 are equal
        "cut": normal.masked_fill(torch.rand(VOCAB, generator=chance) < 0.5, -torch.inf),
        "outlier": normal.index_fill(0, torch.tensor([seed % VOCAB]), 30.0),
    }[shape]


def scaled_of(logits, temperature):
    return (logits - logits.max()).double() / temperature


def by_definition(scaled, top_k, top_p, point):
    """The token, how many are kept, and how near a cut or an edge comes to where rounding decides."""
    best, ids = scaled.sort(stable=True, descending=True)
    best = best[:top_k]
    share = torch.softmax(best, 0)
    before = share.cumsum(0) - share
    kept = int((before < top_p).sum())
    nearest = float((before - top_p).abs().min())
    edges = torch.softmax(best[:kept], 0).cumsum(0)
    at = point * edges[-1]
    nearest = min(nearest, float((edges[:-1] - at).abs().min()) if kept > 1 else 1.0)
    return int(ids[int((edges <= at).sum())]), kept, nearest


@settings(max_examples=400, deadline=None)
@given(SHAPES, SEEDS, TEMPERATURES, st.integers(1, VOCAB), TOP_P, st.floats(0, 1, exclude_max=True))
def test_what_is_drawn_from_buckets_is_what_is_drawn_from_all_sorted(
    shape, seed, temperature, top_k, top_p, point
):
    scaled = scaled_of(logits_of(shape, seed), temperature)
    token, _, nearest = by_definition(scaled, top_k, top_p, point)
    assume(nearest > ROUNDING)
    assert nucleus.drawn(scaled, torch.softmax(scaled, 0), top_k, top_p, point) == token


@pytest.fixture(scope="module")
def native():
    try:
        return kernels_for("native", torch.device("cpu"))
    except KernelError as error:
        pytest.skip(str(error))


@settings(max_examples=400, deadline=None)
@given(SHAPES, SEEDS, TEMPERATURES, st.integers(0, VOCAB), TOP_P, st.floats(0, 1, exclude_max=True))
def test_what_the_compiled_kernels_draw_is_what_is_drawn_from_all_sorted(
    native, shape, seed, temperature, top_k, top_p, point
):
    logits = logits_of(shape, seed)
    scaled = scaled_of(logits, temperature)
    if top_k or top_p < 1:
        token, _, nearest = by_definition(scaled, top_k or VOCAB, top_p, point)
    else:
        edges = torch.softmax(scaled, 0).cumsum(0)
        token, nearest = int((edges <= point).sum()), float((edges - point).abs().min())
    assume(nearest > ROUNDING)
    wish = Wish(temperature, top_k, top_p if top_p < 1 else torch.inf, point)
    beside = torch.stack([torch.full((VOCAB,), torch.nan), logits, torch.full((VOCAB,), 1e38)])
    assert native.draws(beside, {1: wish}) == {1: token}


def test_a_token_without_a_share_is_never_drawn(native):
    last = 1 - 2**-53
    wishes = {row: Wish(1.0, 0, torch.inf, last) for row in range(200)}
    logits = torch.randn(200, VOCAB, generator=torch.Generator().manual_seed(1))
    logits[:, -1] = -torch.inf
    drawn = native.draws(logits, wishes)
    assert all(logits[row, token] > -torch.inf for row, token in drawn.items())


@settings(max_examples=100, deadline=None)
@given(SEEDS, st.lists(st.sampled_from(["flat", "steep", "ties", "cut", "outlier"]), min_size=1, max_size=9))
def test_rows_drawn_together_are_drawn_as_alone_and_as_without_a_compiler(native, seed, shapes):
    logits = torch.stack([logits_of(shape, seed + row) for row, shape in enumerate(shapes)])
    points = torch.rand(len(shapes), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    wishes = {
        row: Wish(1.0, row % 3 * 40, (torch.inf, 0.9, 0.2)[row // 3], float(point))
        for row, point in enumerate(points)
    }
    together = native.draws(logits, wishes)
    assert together == {row: native.draws(logits, {row: wish})[row] for row, wish in wishes.items()}
    plain = draw_each(logits, wishes)
    for row, shape in enumerate(shapes):  # of equals, whichever the partial sort of `draw` puts first
        assert together[row] == plain[row] or (
            shape in {"ties", "cut"} and logits[row, together[row]] == logits[row, plain[row]]
        )


@pytest.mark.parametrize("top_p", [0.9, 0.999])
def test_a_flat_distribution_of_gpt2s_vocabulary_is_drawn_from_alike(native, top_p):
    """Where ten thousand tokens are left, logits of neighbours differ by less than a rounding of float32."""
    for seed in range(20):
        chance = torch.Generator().manual_seed(seed)
        logits = torch.randn(32, 50257, generator=chance) / 2
        points = torch.rand(32, generator=chance, dtype=torch.float64).tolist()
        wishes = {row: Wish(1.0, 0, top_p, point) for row, point in enumerate(points)}
        assert native.draws(logits, wishes) == draw_each(logits, wishes)


@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-53])
@pytest.mark.parametrize("wish", [(0, torch.inf), (0, 0.9), (5, torch.inf), (VOCAB, 0.5)])
@pytest.mark.parametrize("logits", [torch.full((VOCAB,), torch.nan), torch.full((VOCAB,), -torch.inf)])
def test_a_draw_from_nothing_stays_within_the_vocabulary(native, logits, wish, point):
    token = native.draws(logits[None], {0: Wish(1.0, *wish, point)})[0]
    assert isinstance(token, Exception) or 0 <= token < VOCAB


@settings(max_examples=300, deadline=None)
@given(
    SHAPES,
    SEEDS,
    TEMPERATURES,
    st.one_of(st.just(0), st.sampled_from([1, 40, 256, 257, VOCAB, 10**9])),
    TOP_P,
)
def test_a_draw_of_a_seed_is_that_of_the_definition(shape, seed, temperature, top_k, top_p):
    assume(top_k or top_p < 1)
    logits = logits_of(shape, seed)
    point = float(torch.rand((), generator=torch.Generator().manual_seed(seed), dtype=torch.float64))
    scaled = scaled_of(logits, temperature)
    token, kept, nearest = by_definition(scaled, min(top_k or VOCAB, VOCAB), top_p, point)
    assume(nearest > ROUNDING)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    got = draw(logits, wish_of(sampling, torch.Generator().manual_seed(seed), VOCAB))
    assert scaled[got] == scaled[token]
    if kept > 256:  # of equals among fewer, whichever the partial sort puts first
        assert got == token


@settings(max_examples=100, deadline=None)
@given(SHAPES, SEEDS, TEMPERATURES, st.integers(1, VOCAB), TOP_P)
def test_points_at_both_ends_find_the_best_token_and_the_last_that_is_kept(
    shape, seed, temperature, top_k, top_p
):
    scaled = scaled_of(logits_of(shape, seed), temperature)
    _, kept, nearest = by_definition(scaled, top_k, top_p, 0.0)
    assume(nearest > ROUNDING or kept == 1)
    order = scaled.sort(stable=True, descending=True).indices[:kept]
    likely = [i for i in order.tolist() if torch.softmax(scaled, 0)[i] > 0]
    assert nucleus.drawn(scaled, torch.softmax(scaled, 0), top_k, top_p, 0.0) == order[0]
    last = nucleus.drawn(scaled, torch.softmax(scaled, 0), top_k, top_p, 1 - 2**-53)
    share = torch.softmax(scaled, 0)
    assert last in likely
    assert share[likely[likely.index(last) + 1 :]].sum() < ROUNDING


@pytest.mark.parametrize("wishes", [{"top_p": 0.99}, {"top_p": 0.99, "top_k": VOCAB - 1}, {"top_k": VOCAB}])
def test_however_flat_no_more_than_a_small_part_is_sorted(monkeypatch, wishes):
    sizes, topk, sort = [], torch.Tensor.topk, torch.Tensor.sort
    monkeypatch.setattr(torch.Tensor, "topk", lambda x, size: sizes.append(size) or topk(x, size))
    monkeypatch.setattr(torch.Tensor, "sort", lambda x, **how: sizes.append(len(x)) or sort(x, **how))
    logits, generator = logits_of("flat", 0), torch.Generator().manual_seed(0)
    drawn = {draw(logits, wish_of(Sampling(temperature=2.0, **wishes), generator, VOCAB)) for _ in range(200)}
    assert len(drawn) > 150
    assert max(sizes) <= 256
