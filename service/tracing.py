"""Spans of a request: the answer by its route, how the name was found, what became of each row in the engine.

They hold ids of ours, statuses, counts and times; no address, name, text, key or error message. FastAPI's own telemetry
is off, because its spans hold the path, and with it people's names.
"""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.trace import SpanKind, StatusCode, get_current_span
from starlette.types import Scope

from prefix_engine import Generation
from prefix_store.tracing import Tracing, carried, continued
from service.telemetry import known

_MOST_ROWS = 16  # of one request; the others would say the same
# Messages of errors may quote a text.
_QUIET: dict[str, Any] = {"record_exception": False, "set_status_on_exception": False}


class Traces:
    """Makes spans; a process without a collector has none of these and pays nothing."""

    def __init__(self, tracing: Tracing) -> None:
        self._tracing, self._tracer = tracing, tracing.tracer

    def close(self) -> None:
        """Send what is left."""
        self._tracing.close()

    @contextmanager
    def request(self, scope: Scope, request_id: str) -> Iterator[None]:
        """An HTTP request from its head to the end of its answer, under the caller's span if it names one."""
        method = known(scope["method"])
        given = {name.decode(): v.decode("latin-1") for name, v in scope["headers"] if name == b"traceparent"}
        told = {"http.request.method": method, "prefixserve.request_id": request_id}
        with self._tracer.start_as_current_span(
            method, continued(given), SpanKind.SERVER, told, **_QUIET
        ) as span:
            try:
                yield
            finally:
                route = getattr(scope.get("route"), "path", "(none)")
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)
                status = scope["state"].get("status", 0)
                span.set_attribute("http.response.status_code", status)
                if not 0 < status < 500:
                    span.set_status(StatusCode.ERROR)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """A part of the current request."""
        with self._tracer.start_as_current_span(name, **_QUIET):
            yield

    @staticmethod
    def carrier() -> dict[str, str]:
        """The current request's identity, for what goes on in another process."""
        return carried(get_current_span())

    def rows(self, generations: Iterable[Generation]) -> None:
        """The rows of the current request, which have ended or are given up: one span each, what happened as events."""
        for generation in [*generations][:_MOST_ROWS]:
            times = generation.times
            span = self._tracer.start_span("engine.row", start_time=_epoch(times.submitted))
            if times.loaded is not None:
                told = {"seconds": times.load_seconds}
                span.add_event("prefix.loaded", told, _epoch(times.loaded))
            if times.seated is not None:
                span.add_event("seated", timestamp=_epoch(times.seated))
            if times.first is not None:
                span.add_event("first_text", timestamp=_epoch(times.first))
            span.set_attributes(_durations(generation))
            span.end(None if times.ended is None else _epoch(times.ended))


def _durations(generation: Generation) -> dict[str, float | int]:
    times, (prompt, cached, generated) = generation.times, generation.tokens
    told: dict[str, float | int] = {
        "prompt_tokens": prompt,
        "cached_tokens": cached,
        "completion_tokens": generated,
        "load_seconds": times.load_seconds,
    }
    marks = (times.submitted, times.seated, times.first, times.ended)
    for name, began, ended in zip(("queue", "prefill", "decode"), marks, marks[1:], strict=False):
        if began is not None and ended is not None:
            told[f"{name}_seconds"] = ended - began
    return told


def _epoch(moment: float) -> int:
    """A moment of the monotonic clock as nanoseconds of Unix time, by what both clocks say now."""
    return time.time_ns() - int((time.monotonic() - moment) * 1e9)
