"""Traces are off unless somebody asks for them, and asking without their packages says what to do."""

import sys

import pytest

from prefix_store.tracing import TracingError, open_tracing


@pytest.fixture(autouse=True)
def nobody_asks(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)


@pytest.fixture
def without_the_extra(monkeypatch):
    for name in [
        name for name in sys.modules if name.startswith(("opentelemetry.sdk", "opentelemetry.exporter"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("opentelemetry.sdk", "opentelemetry.exporter"):
        monkeypatch.setitem(sys.modules, name, None)  # as if not installed


@pytest.mark.usefixtures("without_the_extra")
def test_without_an_endpoint_there_are_none():
    assert open_tracing("service", None) is None
    assert open_tracing("service", "") is None


@pytest.mark.usefixtures("without_the_extra")
def test_an_endpoint_without_the_packages_is_refused_with_what_to_install():
    with pytest.raises(TracingError, match=r"pip install 'prefixserve\[otel\]'"):
        open_tracing("service", "http://127.0.0.1:4318")


@pytest.mark.usefixtures("without_the_extra")
def test_an_endpoint_that_the_machine_names_for_everybody_stops_nobody(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318")
    assert open_tracing("service", None) is None


def test_the_machines_endpoint_is_used_where_the_packages_are(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = open_tracing("service", None)
    assert tracing is not None
    tracing.tracer.start_span("a").end()
    tracing.close()  # comes back although nobody listens
