"""The real processes under faults: a site that can be hurt, a nemesis that hurts it by a seeded plan, scenarios that
count what clients, database and files say afterwards.

The full size is `make faults`; a small one of each scenario is part of `make test`.
"""

from dataclasses import dataclass
from importlib import import_module

from prefix_store.failpoints import POINTS


@dataclass(frozen=True)
class Scenario:
    """One scenario, `measure(home, say, *, seed, **sizes)` of the module of this name.

    Attributes:
        module: of this package.
        full: its full size.
        nothing: names of its counts that must be 0.
        target: what must hold, in words.
    """

    module: str
    full: dict
    nothing: tuple
    target: str

    def sizes(self, share):
        """A share of the full size, of everything at least one."""
        return {what: max(1, round(count * share)) for what, count in self.full.items()}

    def measure(self):
        """Its function."""
        return import_module(f"faults.{self.module}").measure


SCENARIOS = {
    "jobs": Scenario(
        "jobs",
        {"jobs": 2000, "kills": 200, "restarts": 20, "pauses": 20},
        (
            "lost",
            "made twice",
            "published twice",
            "succeeded and not published",
            "published and not succeeded",
            "published and not answered",
            "files missing",
            "files damaged",
            "stuck",
            "failed",
        ),
        "lost 0, published twice 0, stuck 0",
    ),
    "requests": Scenario(
        "requests",
        {"requests": 50_000, "tenants": 200, "faults": 100},
        ("wrong", "foreign", "other status", "answered otherwise than absent ones", "processes gone"),
        "foreign 0, wrong 0, lists hold what is the asker's; foreign ids are answered as absent ones",
    ),
    "deletes": Scenario(
        "deletes",
        {"deletes": 1000, "pauses": 20},
        (
            "acknowledged later, beyond one in a hundred",
            "tokens after acknowledgement",
            "accepted after acknowledgement",
            "neighbours' streams broken",
            # Counted while no service stands still; those of one that lost sight of the database are told apart.
            "neighbours' streams ended, to be sent again",
        ),
        "acknowledged at once but for 1 %, tokens after it 0, neighbours' streams ended 0; "
        "streams ended within 1,000 ms at p99",
    ),
    "corruptions": Scenario(
        "corruptions",
        {"corruptions": 10_000},
        ("served wrong", "refused though the bucket is whole", "other answers", "neighbours' errors"),
        "served 0, refused for a copy in Redis 0, neighbours' errors 0",
    ),
    "disk": Scenario(
        "disk",
        {"fillings": 50},
        (
            "other answers",
            "texts refused while full",
            "acknowledged and lost",
            "jobs not succeeded",
            "files missing",
            "files damaged",
        ),
        "what does not fit is refused with 507 and leaves nothing; texts go on",
    ),
    "failpoints": Scenario(
        "failpoints",
        {"points": len(POINTS)},
        ("not reached", "failed"),
        "after kill, raise and sleep at each: what was acknowledged is there once, what was deleted stays gone",
    ),
    "overload": Scenario(
        "overload",
        {"seconds": 60, "rounds": 3, "idle": 5000},
        ("refused without Retry-After", "wrong", "lost", "other answers", "wrong beside idle connections"),
        "at 5 times what it can do: goodput at least 90 % of the peak, refusals under 50 ms, 5 % more memory at most; "
        "before it, beside connections that ask nothing: answers as ever",
    ),
    "restarts": Scenario(
        "restarts",
        {"restarts": 50},
        ("streams broken", "other 5xx"),
        "broken streams 0, 5xx other than 503 0",
    ),
}
