"""Metrics of one process, for Prometheus: counted as things happen here, read from engine, store and feed in gauges.py.

`/metrics` has a port of its own, so that it can be kept private. Labels are fixed words and route patterns: no tenant,
user, prefix or request ever makes a series.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Literal, get_args
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    start_http_server,
)

from prefix_engine import Engine, Generation
from prefix_store import Store
from service.connections import Connections
from service.door import Door
from service.errors import Refusal
from service.gauges import Gauges, backlog_of
from service.revocation import Revocation
from service.tickets import Tickets

_METHODS = frozenset({"GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH"})
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_STEP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10)
_LATELY, _FIRST = 512, 32  # tokens that count for what was lately, and that are taken as they come
_LONGEST = 8.0  # times the mean

Erased = Literal["user", "task", "tenant"]


def known(method: str) -> str:
    """A request's method, or `other`: clients may send any word."""
    return method if method in _METHODS else "other"


class Telemetry:
    """Counters of one process in a registry of their own; `token_seconds` lay between two tokens of a row lately."""

    def __init__(self) -> None:
        self.token_seconds, self._told = 0.0, 0
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._requests = Counter(
            "prefix_http_requests", "HTTP answers given.", ["method", "route", "status"], registry=self.registry
        )  # fmt: skip
        self._tokens = Counter(
            "prefix_tokens", "Tokens of completions that were answered.", ["kind"], registry=self.registry
        )
        self._erasures = Counter("prefix_erasures", "Erasures begun here.", ["kind"], registry=self.registry)
        self._seconds = self._histogram(
            "prefix_http_request_seconds", "Seconds from the head of a request to the end of its answer.", ["route"]
        )  # fmt: skip
        self._first = self._histogram(
            "prefix_first_token_seconds", "Seconds from a completion's admission to its first text."
        )
        self._between = self._histogram(
            "prefix_between_tokens_seconds", "Seconds between one token of a row and the next.", buckets=_STEP_SECONDS
        )  # fmt: skip
        self._queued = self._histogram(
            "prefix_queue_seconds", "Seconds that a row waited for its seat in the batch, its prefix's load included."
        )  # fmt: skip
        self._erasing = self._histogram(
            "prefix_erasure_seconds", "Seconds from an erasure's begin to the end of its request.", ["kind"]
        )
        self._refusals = Counter(
            "prefix_refusals", "Requests turned away for a time, by the bound.", ["reason"], registry=self.registry
        )  # fmt: skip
        self._refusing = self._histogram(
            "prefix_refusal_seconds", "Seconds from the head of a request to the end of its refusal."
        )
        for reason in get_args(Refusal):
            self._refusals.labels(reason)
        for kind in get_args(Erased):  # a series that is there from the start shows its first step
            self._erasures.labels(kind)
            self._erasing.labels(kind)
        for kind in ("prompt", "completion"):
            self._tokens.labels(kind)

    def _histogram(
        self, name: str, told: str, labels: Iterable[str] = (), buckets: tuple[float, ...] = _SECONDS
    ) -> Histogram:
        return Histogram(name, told, labels, buckets=buckets, registry=self.registry)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """An answer was given; `route` is the pattern, never the path."""
        self._requests.labels(known(method), route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def refusal(self, reason: Refusal, seconds: float) -> None:
        """A request was turned away, for a time."""
        self._refusals.labels(reason).inc()
        self._refusing.observe(seconds)

    def first_token(self, seconds: float) -> None:
        """The first event of a completion came."""
        self._first.observe(seconds)

    def between_tokens(self, seconds: float) -> None:
        """A token of a row came, so long after the one before; called on the engine's thread."""
        self._between.observe(seconds)
        self._told = min(self._told + 1, _LATELY)
        if self._told > _FIRST:  # a machine that stood still for once is not as slow as that
            seconds = min(seconds, _LONGEST * self.token_seconds)
        self.token_seconds += (seconds - self.token_seconds) / self._told

    def completion(self, prompt_tokens: int, completion_tokens: int) -> None:
        """A completion that had begun has ended, well or not."""
        self._tokens.labels("prompt").inc(prompt_tokens)
        self._tokens.labels("completion").inc(completion_tokens)

    def rows(self, generations: Iterable[Generation]) -> None:
        """These rows have ended or are given up."""
        for generation in generations:
            times = generation.times
            if times.seated is not None:
                self._queued.observe(max(0.0, times.seated - times.submitted))

    def erasure(self, kind: Erased) -> None:
        """An erasure began here."""
        self._erasures.labels(kind).inc()

    def erased(self, kind: Erased, seconds: float) -> None:
        """The request of an erasure was answered, whether or not all of it is done."""
        self._erasing.labels(kind).observe(seconds)

    def watch(self, engine: Engine, store: Store, revocation: Revocation) -> None:
        """Show the engine's, the store's and the feed's state when asked."""
        self.registry.register(Gauges(engine, partial(backlog_of, store), lambda: revocation.age))

    def watch_load(self, tickets: Tickets, door: Door, connections: Connections) -> None:
        """Show what the bounds of admission hold when asked."""
        shown: dict[str, tuple[str, Callable[[], int]]] = {
            "prefix_queue_rows": ("Rows that wait for their turn.", lambda: tickets.rows.total),
            "prefix_queue_tokens": (
                "Positions of requests that wait, run or whose answers have not left.",
                lambda: tickets.tokens.total,
            ),
            "prefix_held_bytes": ("Bytes of bodies of requests under way.", lambda: door.bytes.total),
            "prefix_sent_bytes": ("Bytes of files that are being sent.", lambda: tickets.files.total),
            "prefix_connections": ("Open connections.", lambda: connections.count),
        }
        for name, (told, count) in shown.items():
            Gauge(name, told, registry=self.registry).set_function(count)

    def serve(self, host: str, port: int) -> WSGIServer:
        """Answer `/metrics` on a thread of its own; returns the server, to be shut down."""
        server, _ = start_http_server(port, host, self.registry)
        return server
