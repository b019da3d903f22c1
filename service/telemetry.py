"""Logs and metrics of one process: fixed words and opaque ids, never a text, a name or a key.

`/metrics` has a port of its own, so that it can be kept private; no label names a tenant.
"""

import logging
import sys
import traceback
from typing import Any
from wsgiref.simple_server import WSGIServer

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector
from structlog.typing import EventDict

from prefix_engine import Engine
from prefix_store import Store

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


def log_to_stderr() -> None:
    """One JSON object a line, for our events and for those of the libraries."""
    shared: list[Any] = [
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
    ]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            _without_messages,
            structlog.processors.JSONRenderer(),
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.basicConfig(handlers=[handler], level=logging.INFO, force=True)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )


def _without_messages(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Show of an error where it happened and of what kind; its message may quote a text."""
    info = event.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else (info or (None, None, None))[1]
    if error is not None:
        frames = traceback.extract_tb(error.__traceback__)
        places = [f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} {frame.name}" for frame in frames]
        event["exception"] = f"{type(error).__name__} at {' > '.join(places)}"
    return event


class Telemetry:
    """Counters of one process in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "prefix_http_requests", "Answers.", ["method", "route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "prefix_http_request_seconds", "Time to the end of an answer.", ["route"], buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._first = Histogram(
            "prefix_first_token_seconds", "From admission to the first event.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._erasures = Counter("prefix_erasures", "Erasures begun here.", ["kind"], registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer was given; `route` is the pattern, never the path."""
        self._requests.labels(method if method in _METHODS else "other", route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """The first event of a completion came."""
        self._first.observe(seconds)

    def erasure(self, kind: str) -> None:
        """An erasure began here."""
        self._erasures.labels(kind).inc()

    def watch(self, engine: Engine, store: Store) -> None:
        """Show the engine's and the jobs' state when asked."""
        self.registry.register(_State(engine, store))

    def serve(self, host: str, port: int) -> WSGIServer:
        """Answer `/metrics` on a thread of its own; returns the server, to be shut down."""
        server, _ = start_http_server(port, host, self.registry)
        return server


class _State(Collector):
    """Read from engine and store at each scrape."""

    _GAUGES = (
        "running",
        "waiting",
        "loading",
        "resident_prefixes",
        "resident_bytes",
        "pages_used",
        "pages_cached",
        "pages_total",
        "occupancy",
    )
    _COUNTERS = (
        "steps",
        "generated_tokens",
        "prefill_tokens",
        "prompt_cache_hits",
        "prompt_cache_tokens",
        "pool_hits",
        "pool_misses",
        "pool_evictions",
        "load_seconds",
    )

    def __init__(self, engine: Engine, store: Store) -> None:
        self._engine, self._store = engine, store

    def describe(self) -> list[Any]:
        """Nothing is asked when it is registered."""
        return []

    def collect(self) -> Any:
        """The state now."""
        stats = self._engine.stats()
        for name in self._GAUGES:
            yield GaugeMetricFamily(f"prefix_engine_{name}", f"{name} of the engine", getattr(stats, name))
        for name in self._COUNTERS:
            yield CounterMetricFamily(f"prefix_engine_{name}", f"{name} of the engine", getattr(stats, name))
        yield GaugeMetricFamily("prefix_engine_beat_age", "seconds since it turned", self._engine.beat_age())
        jobs = GaugeMetricFamily("prefix_jobs", "training jobs by state", labels=["status"])
        for status, count in self._store.jobs.counts().items():
            jobs.add_metric([status], count)
        yield jobs
