"""Failpoints, a small part of what `measure` tries: raise at all of the store's points, kill at a dozen."""

from faults.failpoints_tried import DOZEN, try_all
from faults.story_places import Sqlite


def test_a_fault_anywhere_in_the_store_costs_a_try_and_nothing_else():
    with_files = try_all(print, Sqlite, ("raise",))
    assert with_files["not reached"] == []
    assert with_files["failed"] == []
    assert with_files["passed"] == with_files["tried"] == len(Sqlite.points) > 35


def test_a_process_killed_at_a_dozen_points_is_told_on_by_another():
    killed = try_all(print, Sqlite, ("kill",), DOZEN)
    assert killed["not reached"] == []
    assert killed["failed"] == []
    assert killed["passed"] == len(DOZEN) == 12
