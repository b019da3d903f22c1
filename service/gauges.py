"""What engine, jobs and feed are like at the moment of a scrape.

A database that is away costs the scrape its job counts and nothing else: `prefix_store_up` says so.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, get_args

import structlog
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from prefix_engine import Engine
from prefix_store import Store
from prefix_store.job_rows import JobStatus

log = structlog.get_logger("service")

# Attributes of EngineStats, each the end of a metric's name, and what the metric says.
_GAUGES: Final = {
    "running": "Rows in the batch now.",
    "waiting": "Requests that have no row yet: the queue.",
    "waiting_tokens": "Positions that requests without a row ask for: prompts and most answers.",
    "rows": "Rows that the batch has room for.",
    "occupancy": "Decoding rows of a step as a share of the batch's rows, averaged since the start.",
    "loading": "Prefixes being loaded, or loaded and waiting for room.",
    "resident_prefixes": "Prefixes in the pool.",
    "resident_bytes": "Bytes of the pages that resident prefixes hold.",
    "pages_used": "Pages of running rows' keys and values.",
    "pages_cached": "Pages of prompts that no row reads, kept for the same caller's next request.",
    "pages_total": "Pages for rows and kept prompts.",
}
_COUNTERS: Final = {
    "steps": "Forward passes of the batch.",
    "decoded_rows": "Rows that a step gave a token, summed over steps; divided by steps and rows it is the occupancy.",
    "generated_tokens": "Tokens chosen.",
    "prefill_tokens": "Prompt tokens computed.",
    "prompt_cache_hits": "Requests that found the beginning of their prompt in memory.",
    "prompt_cache_tokens": "Prompt tokens found in memory and not computed again.",
    "pool_hits": "Rows seated on a resident prefix.",
    "pool_misses": "Loads of prefixes that were not resident.",
    "pool_evictions": "Prefixes that made room for others.",
    "load_seconds": "Seconds spent loading prefixes.",
}


_STORE: Final = {
    "prefix_jobs_leased": "Jobs that a worker holds: running, with a lease that has not run out.",
    "prefix_erasures_open": "Erasures that are not done.",
    "prefix_erasures_oldest_seconds": "Age of the oldest erasure that is not done; 0 if there is none.",
}


@dataclass(frozen=True, slots=True)
class Backlog:
    """What is to be done in the store: jobs by status, how many of them a worker holds, and `UnfinishedErasures.backlog`."""

    jobs: Mapping[str, int]
    leased: int
    erasures: tuple[int, float]


def backlog_of(store: Store) -> Backlog:
    """Of all tenants; raises what the database does."""
    return Backlog(store.jobs.counts(), store.jobs.leased(), store.erasure.backlog())


class Gauges(Collector):
    """Read at each scrape.

    Args:
        engine: whose stats are shown.
        backlog: what the database says of jobs and erasures; may raise.
        feed_age: seconds since the last good read of the change feed.
    """

    def __init__(self, engine: Engine, backlog: Callable[[], Backlog], feed_age: Callable[[], float]) -> None:
        self._engine, self._backlog, self._feed_age = engine, backlog, feed_age

    def describe(self) -> list[Metric]:
        """Nothing is asked when it is registered."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The state now."""
        stats = self._engine.stats()
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(f"prefix_engine_{name}", told, getattr(stats, name))
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(f"prefix_engine_{name}", told, getattr(stats, name))
        yield GaugeMetricFamily(
            "prefix_engine_beat_age_seconds",
            "Seconds since a step last ended, or since the loop last turned with nothing to do.",
            self._engine.beat_age(),
        )
        yield GaugeMetricFamily(
            "prefix_feed_age_seconds", "Seconds since deletions were last looked for.", self._feed_age()
        )
        yield from self._of_the_store()

    def _of_the_store(self) -> Iterator[Metric]:
        jobs = GaugeMetricFamily("prefix_jobs", "Training jobs by state, of all tenants.", labels=["status"])
        gauges = [GaugeMetricFamily(name, told) for name, told in _STORE.items()]
        up = 1
        try:
            found = self._backlog()
        except Exception as error:  # noqa: BLE001 - whatever it is, the database does not answer
            log.warning("metrics.store_away", error=type(error).__name__)
            up = 0
        else:
            for status in get_args(JobStatus):
                jobs.add_metric([status], found.jobs.get(status, 0))
            for gauge, value in zip(gauges, (found.leased, *found.erasures), strict=True):
                gauge.add_metric([], value)
        yield from (jobs, *gauges)
        yield GaugeMetricFamily("prefix_store_up", "Whether the database answered this scrape.", up)
