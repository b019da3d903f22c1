"""What the sections of the service's bench share: the site, the lengths, who asks for what, how it is printed."""

import heapq
import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.referee import Referee
from bench.service_site import Tenant
from service.cli.bench_asks import draw, popularity
from service.cli.bench_load import Ask, Outcome


@dataclass(frozen=True)
class Sizes:
    """How much of everything: the whole bench, or what shows that it works.

    Attributes:
        prefixes: of all tenants.
        prompt: range of the prompts' lengths.
        output: range of the answers' lengths.
        under_way: requests at once that saturate; more than the batch has rows.
        saturated_s: seconds of one saturated turn, about.
        rounds: of turns that alternate.
        loads: multiples of the capacity.
        load_s: seconds of each load.
        long_load_s: seconds of the load of which percentiles are promised.
        deadline_s: least of the service that is swept, so that overload is refused rather than queued without end.
        fair_s: seconds of each turn with the heavy tenant.
        fair_rounds: of both kinds of turn.
        heavy: streams of the heavy tenant.
        cold: prefixes of which the first use is compared with the next, one at a time.
        crowd: cold prefixes that are asked for at once.
        window_s: without a crowd, in which the others' tokens are looked at.
        beside_s: seconds of each turn of streams beside which somebody trains or not.
        beside_rounds: of both kinds of turn.
        registered: prefixes of the registries, the fewest first.
        resolves: calls of each turn on a registry.
    """

    prefixes: int = 200
    prompt: tuple[int, int] = (20, 400)
    output: tuple[int, int] = (10, 100)
    under_way: int = 48
    saturated_s: float = 18.0
    rounds: int = 3
    loads: tuple[float, ...] = (0.1, 0.4, 0.7, 1.0, 1.5, 3.0)
    load_s: float = 18.0
    long_load_s: float = 75.0
    deadline_s: float = 20.0
    fair_s: float = 30.0
    fair_rounds: int = 2
    heavy: int = 100
    cold: int = 40
    crowd: int = 50
    window_s: float = 1.5
    beside_s: float = 20.0
    beside_rounds: int = 2
    registered: tuple[int, ...] = (100, 1000, 10_000, 100_000)
    resolves: int = 1000


QUICK = Sizes(
    prefixes=28,
    prompt=(5, 40),
    output=(2, 6),
    under_way=6,
    saturated_s=1.0,
    rounds=1,
    loads=(0.3, 0.7, 2.0),
    load_s=1.5,
    long_load_s=2.0,
    deadline_s=5.0,
    fair_s=3.0,
    fair_rounds=1,
    heavy=8,
    cold=3,
    crowd=4,
    window_s=0.1,
    beside_s=1.0,
    beside_rounds=1,
    registered=(10, 300),
    resolves=40,
)
M = 10
LIGHT = 20
PATIENT_S = "300"  # a deadline that no request of a saturated service reaches


@dataclass
class ServiceRun:
    """One run of the bench.

    Attributes:
        sizes: how much.
        folder: of the store.
        base_model: what the service loads.
        tenants: with their prefixes; the first ones ask the most.
        referee: repeats disturbed saturated rounds, and counts other disturbed turns.
        capacity: requests a second that the saturated service answered; 0 until it was measured.
    """

    sizes: Sizes
    folder: Path
    base_model: str
    tenants: Sequence[Tenant]
    referee: Referee
    capacity: float = 0.0

    def say(self, line: str) -> None:
        """Print progress at once."""
        print(line, flush=True)

    @property
    def crowd(self) -> Sequence[Tenant]:
        """Tenants of unequal appetite that share the prefixes of the sweep."""
        return self.tenants[:8]

    def asks(self, *, seed: int, rate: float | None = None) -> Iterator[Ask]:
        """Endless asks of tenants of unequal appetite, Zipf by tenant and by prefix.

        Args:
            seed: of all that is drawn.
            rate: requests a second of all tenants together; None gives no moments.
        """
        weights = popularity(len(self.crowd), 1.0)
        streams = [
            self.stream(tenant, None if rate is None else rate * weight / sum(weights), seed=100 * seed + i)
            for i, (tenant, weight) in enumerate(zip(self.crowd, weights, strict=True))
        ]
        if rate is not None:
            return heapq.merge(*streams, key=lambda ask: ask.due or 0.0)
        choice = random.Random(seed)
        return (next(choice.choices(streams, weights)[0]) for _ in itertools.count())

    def stream(self, tenant: Tenant, rate: float | None, *, seed: int) -> Iterator[Ask]:
        """Endless asks of one tenant."""
        return draw(
            tenant.prefixes,
            prompt=self.sizes.prompt,
            output=self.sizes.output,
            rate=rate,
            zipf=1.0,
            seed=seed,
            api_key=tenant.key,
            label=tenant.name,
        )


def capacity(outcomes: Sequence[Outcome], seconds: float) -> float:
    """Requests a second that a saturated service answers: counted by tokens, until nobody waits to be sent.

    What comes after the last request was sent is left out, for the batch then runs empty.
    """
    start, stop = min(o.began + o.seconds for o in outcomes), max(o.began for o in outcomes)
    if stop - start < 0.2 * seconds:  # too few requests for that
        return len(outcomes) / seconds
    came = sum(start <= o.began + piece <= stop for o in outcomes for piece in o.pieces[:-1])
    return came / (stop - start) / statistics.fmean(len(o.pieces) - 1 for o in outcomes)


def p95(seconds: Iterable[float], refused: int) -> float:
    """What 95 of a hundred requests waited no longer than; infinite for those that were refused or broken."""
    waited = sorted([*seconds, *[math.inf] * refused])
    return waited[math.ceil(0.95 * len(waited)) - 1] if waited else math.nan


def require_all(outcomes: Sequence[Outcome]) -> None:
    """RuntimeError if one was refused or broken."""
    wrong = Counter(outcome.error for outcome in outcomes if outcome.error is not None)
    if wrong:
        raise RuntimeError(f"the service refused what it should have served: {dict(wrong)}")
