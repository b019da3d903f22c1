"""Loss curves as lines of blocks."""

from hypothesis import given
from hypothesis import strategies as st

from service.cli.curve import blocks, curves, thinned


def event(step, **losses):
    return {"type": "metrics", "data": {"step": step, **losses}}


def test_a_falling_loss_is_drawn_from_high_to_low_in_the_order_of_steps():
    told = [event(3, valid_loss=1.0), event(2, train_loss=2.0), event(1, train_loss=4.0, valid_loss=3.0)]
    assert curves(told) == ["train    █▁ 4.000 -> 2.000", "held-out █▁ 3.000 -> 1.000"]


def test_messages_and_single_points_draw_nothing():
    assert curves([{"type": "message", "data": None}, event(1, train_loss=2.0)]) == []


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=200))
def test_every_value_has_a_block_and_the_extremes_have_theirs(values):
    drawn = blocks(values)
    assert len(drawn) == len(values)
    assert drawn[values.index(min(values))] == "▁"
    if max(values) > min(values):
        assert drawn[values.index(max(values))] == "█"


@given(st.lists(st.integers(), min_size=1, max_size=300), st.integers(2, 50))
def test_thinning_keeps_the_ends_and_the_order(values, most):
    kept = thinned(values, most)
    assert len(kept) == min(len(values), most)
    assert (kept[0], kept[-1]) == (values[0], values[-1])
