from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer_worker.refusal import Refused
from trainer_worker.rows import Row
from trainer_worker.split import FEWEST, split

pairs = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5)), min_size=10, max_size=200)


def rows_from(pairs_):
    return [Row(f"p{prompt}", f"c{completion}", "f", i) for i, (prompt, completion) in enumerate(pairs_, 1)]


@given(pairs)
def test_no_prompt_stands_on_both_sides(drawn):
    rows = rows_from(drawn)
    try:
        sides = split(rows)
    except Refused:
        assert len({(row.prompt, row.completion) for row in rows}) < 20
        return
    assert sorted([*sides.training, *sides.held_out]) == list(range(len(rows)))
    assert sides.training
    assert len(sides.held_out) >= FEWEST
    assert len(sides.held_out) <= max(2 * FEWEST, 0.2 * len(rows) + 1)
    counts = Counter(row.prompt for row in rows)

    def key(i):  # a prompt with more rows than are to be held out is split, by its rows
        by_prompt = len(counts) >= 20 and counts[rows[i].prompt] <= max(FEWEST, round(0.1 * len(rows)))
        return rows[i].prompt if by_prompt else (rows[i].prompt, rows[i].completion)

    assert not {key(i) for i in sides.training} & {key(i) for i in sides.held_out}


@given(pairs, st.randoms(use_true_random=False))
def test_the_order_of_the_rows_changes_nothing(drawn, rng):
    rows = rows_from(drawn)
    shuffled = rows.copy()
    rng.shuffle(shuffled)

    def held(some):
        try:
            return sorted((some[i].prompt, some[i].completion) for i in split(some).held_out)
        except Refused:
            return None

    assert held(rows) == held(shuffled)


def test_about_a_tenth_of_many_rows_is_held_out():
    rows = rows_from([(i // 8, i % 8) for i in range(4000)])
    assert 400 <= len(split(rows).held_out) <= 410


def test_a_prompt_that_has_most_of_the_rows_is_trained_on():
    rows = rows_from([(0, i) for i in range(200)] + [(i, 0) for i in range(1, 60)])
    held_out = {rows[i].prompt for i in split(rows).held_out}
    assert "p0" not in held_out


def whole(rows, places):
    return {(rows[i].prompt, rows[i].completion) for i in places}


@pytest.mark.parametrize("large", [1, 3])
def test_beside_prompts_with_most_of_the_rows_half_of_the_others_are_trained_on(large):
    """Else the version is judged by prompts of which it saw none, and learns nothing for them."""
    several = [(i % large, i) for i in range(950)]
    rows = rows_from([*several, *several[:200], *[(100 + i, 0) for i in range(50)]])
    sides = split(rows)
    few = [
        {rows[i].prompt for i in side} - {f"p{i}" for i in range(large)}
        for side in (sides.training, sides.held_out)
    ]
    assert [len(side) for side in few] == [25, 25]
    assert not few[0] & few[1]
    assert 120 <= len(sides.held_out) <= 122
    assert {rows[i].prompt for i in sides.training} & {rows[i].prompt for i in sides.held_out} >= {"p0"}
    assert not whole(rows, sides.training) & whole(rows, sides.held_out)


def test_copies_of_one_row_are_no_rows_to_fill_up_with():
    rows = rows_from([(0, 0)] * 950 + [(100 + i, 0) for i in range(50)])
    sides = split(rows)
    assert len(sides.held_out) == 25
    assert not whole(rows, sides.training) & whole(rows, sides.held_out)


def test_ten_rows_are_enough():
    sides = split(rows_from([(i, 0) for i in range(10)]))
    assert (len(sides.training), len(sides.held_out)) == (2, 8)


def test_nine_rows_are_refused_and_the_mend_is_named():
    with pytest.raises(Refused, match="validation file") as refused:
        split(rows_from([(i, 0) for i in range(9)]))
    assert (refused.value.code, refused.value.param) == ("too_few_rows", "training_file")


def test_one_row_many_times_is_refused():
    with pytest.raises(Refused, match="too few different rows"):
        split(rows_from([(0, 0)] * 50))
