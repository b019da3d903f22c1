"""Every failpoint, tried: a story is told while the point is armed, told on by a new process, and looked at.

`python -m faults.failpoints_tried [form] [act] [point ...]` from the folder `tests` tries a part.
"""

import json
import sys
import time

from faults.forks import Forks
from faults.neighbour import Neighbour
from faults.story_places import Sqlite, forms

ACTS = ("kill", "raise", "sleep")
SLEEP_S, LONG_SLEEP_S = 0.3, 1.2  # the long one outlasts a lease
LEASED = ("claim.", "lease.", "checkpoint.", "publish.")
COPIES = ("backup.", "restore.")
# Where every passing is tried, not the first alone: transactions, files and the ledger are passed by everything.
EVERYWHERE = ("database.", "draft.", "file.", "object.", "ledger.", "litter.", "erase.", "version.", "sweep.")
# Between a file and its row: what a process leaves here is litter, which the sweep takes. Nowhere else there is any.
LEAVING = ("draft.", "file.", "object.", "dataset.after", "checkpoint.", "publish.", "database.before")
DOZEN = (
    "database.before_commit",
    "database.after_commit",
    "file.after_rename",
    "dataset.after_seal",
    "claim.taken",
    "checkpoint.after_row",
    "publish.after_files",
    "publish.told",
    "ledger.after_sync",
    "litter.after_unlink",
    "erase.after_files",
    "restore.after_files",
)


class Tried:
    """Counts of what was tried."""

    def __init__(self):
        self.tried = self.passed = 0
        self.points, self.not_reached, self.failed = set(), [], []
        self.longest_start_s = 0.0

    def note(self, what, point, wrong, *, reached):
        self.tried += 1
        self.points.add(point)
        if not reached:
            self.not_reached.append(what)
        elif wrong:
            self.failed.append({"what": what, "wrong": wrong})
        else:
            self.passed += 1

    def counts(self):
        return {
            "points": len(self.points),
            "tried": self.tried,
            "passed": self.passed,
            "not reached": self.not_reached,
            "failed": self.failed,
            "longest start s": self.longest_start_s,
        }


def action(point, act):
    if act != "sleep":
        return act
    return f"sleep({LONG_SLEEP_S if point.startswith(LEASED) else SLEEP_S})"


def try_points(forks, form, tried, points, act, at=1):
    """Tell a story with points armed, have it told on, note what came of it."""
    armed = ",".join(f"{point}={action(point, act)}:{at}" for point in points)
    copies = any(point.startswith(COPIES) for point in points) or at > 1
    with form.place(copies=copies) as (home, environment):
        forks.start(home, environment | {"PREFIX_FAILPOINTS": armed}, copies=copies)
        seen = []
        if act == "sleep":
            with Neighbour(form.settings(home), home) as neighbour:
                status = forks.ended()
            seen = neighbour.wrong
        else:
            status = forks.ended()
        if act == "kill":
            wrong, passed = [], dict.fromkeys(points, at if status == -9 else 0)
        else:
            wrong = seen + _wrong(home, status)
            passed = _result(home).get("passed", {})
        forks.start(home, environment, copies=copies)
        wrong = wrong + _wrong(home, forks.ended())
        if not any(point.startswith(LEAVING) for point in points) and _result(home).get("orphans"):
            wrong = [*wrong, f"files that no row names: {_result(home)['orphans']}"]
        tried.longest_start_s = max(tried.longest_start_s, _result(home).get("started", 0.0))
        if wrong:
            print(home.joinpath("stderr").read_text()[-3000:], file=sys.stderr)
    for point in points:
        reached = passed.get(point, 0) >= at or bool(wrong)
        tried.note(f"{form.name} {point}={act}:{at}", point, wrong, reached=reached)
    return wrong


def _result(home):
    path = home / "result.json"
    return json.loads(path.read_text()) if path.exists() else {}


def _wrong(home, status):
    if status != 0:
        lines = (home / "stderr").read_text().strip().splitlines() or ["it said nothing"]
        return [f"the story ended with {status}: {lines[-1]}"]
    return _result(home)["wrong"]


def passings(forks, form):
    """How often each point is passed by a story that nothing happens to."""
    with form.place(copies=True) as (home, environment):
        quiet = ",".join(f"{point}=sleep(0)" for point in form.points)
        forks.start(home, environment | {"PREFIX_FAILPOINTS": quiet}, copies=True)
        wrong = _wrong(home, forks.ended())
        assert not wrong, wrong
        return _result(home)["passed"]


def try_all(say, form, acts=ACTS, points=("",), together=1):
    """Each point of a form that begins with one of `points`, with each act at its first passing; counts.

    `together` is how many points are armed in one story.
    """
    tried = Tried()
    with Forks() as forks, form() as place:
        chosen = [point for point in place.points if point.startswith(tuple(points))]
        stories = -(-len(chosen) // together)
        for group in (chosen[start::stories] for start in range(stories)):
            for act in acts:
                wrong = try_points(forks, place, tried, group, act)
                if wrong:
                    say(f"{place.name} {', '.join(group)} {act}: {wrong}")
    return tried.counts()


def try_every_passing(say, form, act="kill", points=EVERYWHERE):
    """Points that are passed again and again, at each passing behind the first; counts."""
    tried = Tried()
    with Forks() as forks, form() as place:
        for point, count in passings(forks, place).items():
            for at in range(2, count + 1 if point.startswith(points) else 0):
                wrong = try_points(forks, place, tried, (point,), act, at)
                if wrong:
                    say(f"{place.name} {point} {act}:{at}: {wrong}")
    return tried.counts()


def try_small(say):
    """What `make test` tries: raise everywhere, some points in one story, and kill at a dozen; with SQLite."""
    return {
        "raise": try_all(say, Sqlite, ("raise",), together=4),
        "kill": try_all(say, Sqlite, ("kill",), DOZEN),
    }


if __name__ == "__main__":
    chosen = [form for form in forms() if sys.argv[1:2] in ([], [form.name])]
    asked, names = sys.argv[2:3], sys.argv[3:]
    start = time.monotonic()
    for one in chosen:
        if asked == ["every"]:
            print(json.dumps(try_every_passing(print, one, points=tuple(names) or EVERYWHERE), indent=1))
        else:
            print(json.dumps(try_all(print, one, tuple(asked) or ACTS, tuple(names) or ("",)), indent=1))
    print(round(time.monotonic() - start, 1), "s")
