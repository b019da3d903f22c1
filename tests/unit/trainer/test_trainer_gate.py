import math

import pytest

from trainer_worker.gate import judge, judge_texts


@pytest.mark.parametrize(
    ("held_out", "base", "live", "promote"),
    [
        (1.0, 2.0, None, True),
        (2.0, 2.0, None, False),
        (2.1, 2.0, None, False),
        (1.0, 2.0, 1.5, True),
        (1.5, 2.0, 1.5, False),
        (1.7, 2.0, 1.5, False),
        (1.7, 1.6, 1.8, False),
        (math.nan, 2.0, None, False),
        (1.0, math.nan, None, False),
    ],
)
def test_it_opens_only_for_what_beats_base_and_live(held_out, base, live, promote):
    assert judge(held_out, base, live).promote is promote


def test_it_says_what_was_not_beaten():
    reason = judge(1.7, 2.0, 1.5).reason
    assert "live version's 1.5000" in reason
    assert "base" not in reason
    assert "beats the base model's 2.0000 and the live version's 1.9000" in judge(1.7, 2.0, 1.9).reason


@pytest.mark.parametrize(
    ("metric", "own", "base", "live", "promote"),
    [
        ("bleu", 20.0, 10.0, None, True),
        ("bleu", 20.0, 10.0, 15.0, True),
        ("bleu", 20.0, 10.0, 20.0, False),
        ("bleu", 9.0, 10.0, 5.0, False),
        ("ter", 60.0, 90.0, 70.0, True),
        ("ter", 80.0, 90.0, 70.0, False),
        ("ter", 100.0, 650.0, None, False),
        ("exact_match", math.nan, 0.0, None, False),
        ("chrf", None, 1.0, None, False),
        ("chrf", 1.0, None, None, False),
    ],
)
def test_a_metric_opens_it_only_if_it_is_better_than_bases_and_lives(metric, own, base, live, promote):
    verdict = judge_texts(metric, own, base, live)
    assert verdict.promote is promote
    assert metric in verdict.reason
