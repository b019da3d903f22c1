"""A short flood: every request is accounted for, and every refusal says when to come again. No times are looked at."""

from faults import SCENARIOS


def test_what_must_be_nothing_is_nothing_in_a_flood(tmp_path):
    scenario = SCENARIOS["overload"]
    found = scenario.measure()(tmp_path, print, seed=7, seconds=6, rounds=1, idle=300)
    assert {what: found[what] for what in scenario.nothing if found[what]} == {}, found
    assert found["answered"], found
    assert found["refused"], found
    assert found["offered"] == found["answered"] + found["refused"], found
