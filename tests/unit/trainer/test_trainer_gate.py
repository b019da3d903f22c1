import math

import pytest

from trainer_worker.gate import judge


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
