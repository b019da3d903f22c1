"""Failpoints, a small part of what is tried: raise at all of the store's points, kill at a dozen."""

from faults.failpoints_tried import DOZEN, try_small
from faults.story_places import Sqlite


def test_a_fault_anywhere_in_the_store_costs_a_try_and_a_killed_process_is_told_on_by_another():
    found = try_small(print)
    for counts, wanted in ((found["raise"], len(Sqlite.points)), (found["kill"], len(DOZEN))):
        assert counts["not reached"] == []
        assert counts["failed"] == []
        assert counts["passed"] == counts["tried"] == counts["points"] == wanted
    assert len(Sqlite.points) > 35
