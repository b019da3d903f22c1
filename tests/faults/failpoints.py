"""Every named failpoint, tried with kill, raise and sleep: the store's in each form by a story, the processes' for real.

The stories are told where the tests' PostgreSQL and Redis are, else with SQLite alone; the counts name the forms.
"""

import random

from faults.failpoints_tried import try_all, try_every_passing
from faults.processes_tried import ACTS, POINTS_HERE, try_processes
from faults.story_places import forms
from prefix_store.failpoints import POINTS

ALL = len(POINTS)


def measure(home, say, *, points=ALL, seed=1):
    """Try so many points, drawn by the seed; what was counted, by name. With all of them also kill at every passing."""
    del home  # each story makes its own
    chosen = random.Random(seed).sample(sorted(POINTS), min(points, ALL))
    found = {"points": len(chosen), "tried": {}, "passed": {}, "not reached": 0, "failed": 0}
    for form in forms():
        here = [point for point in chosen if point in form.points]
        if here:
            _add(found, form.name, try_all(say, form, points=here), say)
    processes = {point: tuple(ACTS) for point in chosen if point in POINTS_HERE}
    if processes:
        _add(found, "processes", try_processes(say, processes), say)
    if len(chosen) == ALL:
        _add(found, "kill at every passing", try_every_passing(say, forms()[0]), say)
    return found


def _add(found, name, counts, say):
    say(f"{name}: {counts}")
    for what in ("tried", "passed"):
        found[what][name] = counts[what]
    for what in ("not reached", "failed"):
        found[what] += len(counts[what])
