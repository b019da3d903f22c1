"""Where the spans of one process go: to an OTLP collector if one is named, else there are none.

The provider is this process's own, never OpenTelemetry's global one, so that no library adds spans that quote an
address, a statement or a text. What the exporter may be told besides (headers, time-outs, sampling) it reads from
OpenTelemetry's own variables.
"""

import os
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import structlog
from opentelemetry.context import Context
from opentelemetry.trace import Span, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

log = structlog.get_logger("prefix_store")

_GENERIC: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
_PATH: Final = "/v1/traces"
_CLOSE_S = 3.0
_W3C = TraceContextTextMapPropagator()


class TracingError(Exception):
    """Traces were asked for and cannot be made; the message says what to install."""


class Tracing:
    """Makes the spans of one process.

    Args:
        provider: of the SDK, with an exporter; closed with this.
    """

    def __init__(self, provider: "TracerProvider") -> None:
        self._provider = provider
        self.tracer = provider.get_tracer("prefixserve")

    def close(self) -> None:
        """Send what is left, for `_CLOSE_S` at most: a collector that is away must not hold a process up."""
        sending = threading.Thread(target=self._provider.shutdown, name="last-spans", daemon=True)
        sending.start()
        sending.join(_CLOSE_S)


def open_tracing(process: str, endpoint: str | None) -> Tracing | None:
    """Traces of a process named `process`; None if no collector is named.

    Args:
        process: `service.name` of its spans, unless OTEL_SERVICE_NAME says another.
        endpoint: base URL of an OTLP collector over HTTP; what OTEL_EXPORTER_OTLP_ENDPOINT says if None.

    Raises:
        TracingError: an endpoint was given and the packages of the extra `otel` are not installed.
    """
    base = endpoint or os.environ.get(_GENERIC)
    if not base:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415 - an extra
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
    except ImportError:
        if endpoint is None:  # set for everything on the machine; nobody asked us
            log.warning("tracing.not_installed")
            return None
        raise TracingError("the packages for traces are missing; pip install 'prefixserve[otel]'") from None
    name = os.environ.get("OTEL_SERVICE_NAME", process)
    provider = TracerProvider(resource=Resource.create({"service.name": name}), shutdown_on_exit=False)
    url = base if base.rstrip("/").endswith(_PATH) else base.rstrip("/") + _PATH
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url)))
    return Tracing(provider)


def carried(span: Span) -> dict[str, str]:
    """A span's identity for another process (W3C Trace Context): `traceparent`, and `tracestate` if there is one."""
    carrier: dict[str, str] = {}
    _W3C.inject(carrier, set_span_in_context(span))
    return carrier


def continued(carrier: Mapping[str, str] | None) -> Context:
    """The context of the span that `carried` told of; an empty one for none, or for what is malformed."""
    return _W3C.extract(carrier or {}, Context())
