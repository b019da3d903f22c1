import math

import pytest

from trainer_worker.gate import judge, judge_texts, verdict_on


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


def test_it_says_which_loss_on_how_many_rows_decided():
    metrics = {"held_out_loss": 2.0, "base_loss": 2.5, "live_loss": 2.1, "held_out_rows": 10}
    some = verdict_on(None, {**metrics, "compared_loss": 2.2, "compared_rows": 9})
    assert not some.promote
    assert some.reason == (
        "its loss 2.2000 on the 9 held-out rows that fit behind the live version "
        "does not beat the live version's 2.1000"
    )
    better = verdict_on(None, {**metrics, "compared_loss": 1.9, "compared_rows": 9})
    assert better.promote
    assert "its held-out loss 2.0000 beats the base model's 2.5000; its loss 1.9000 on the 9" in better.reason
    neither = verdict_on(None, {**metrics, "base_loss": 1.0, "compared_loss": 2.2, "compared_rows": 9}).reason
    assert "2.0000 does not beat the base model's 1.0000; its loss 2.2000 on the 9" in neither
    every = verdict_on(None, {**metrics, "compared_loss": 2.0, "compared_rows": 10}).reason
    assert every == "its held-out loss 2.0000 beats the base model's 2.5000 and the live version's 2.1000"


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
