"""A small run of each scenario, with its own seed; the full one is `make faults`."""

import os
import tempfile
from pathlib import Path

import pytest

from faults import SCENARIOS
from faults.site import missing

SMALL = {
    "jobs": {"jobs": 8, "kills": 2, "restarts": 1, "pauses": 1},
    "requests": {"requests": 300, "tenants": 6, "faults": 4},
    "deletes": {"deletes": 8, "pauses": 1},
    "corruptions": {"corruptions": 80},
    "disk": {"fillings": 2},
    "failpoints": {"points": 2, "seed": 2},  # one of a process, one of the store
    "restarts": {"restarts": 2},
}
pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


@pytest.mark.parametrize("name", SMALL)
def test_what_must_be_nothing_is_nothing(name):
    if name == "disk" and os.geteuid() != 0:
        pytest.skip("only root may mount the small file system that is filled")
    scenario = SCENARIOS[name]
    with (
        tempfile.TemporaryDirectory() as place
    ):  # not pytest's folder, which PostgreSQL's own user cannot enter
        home = Path(place)
        home.chmod(0o711)
        found = scenario.measure()(home, print, **{"seed": 7, **SMALL[name]})
    assert {what: found[what] for what in scenario.nothing if found[what]} == {}, found
    assert all(found[what] for what in HAPPENED[name]), found


# So that a run in which nothing was tried does not pass.
HAPPENED = {
    "jobs": ("jobs", "succeeded", "faults"),
    "requests": ("right", "lists", "foreign ids", "faults"),
    "deletes": ("deletes", "streams cut"),
    "corruptions": ("refused as corrupt", "served right from the bucket"),
    "disk": ("refused for want of room", "texts while full"),
    "failpoints": ("points", "tried"),
    "restarts": ("streams whole", "ended with status 0"),
}
