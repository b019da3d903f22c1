"""Traces are off unless somebody asks for them, and asking without their packages says what to do."""

import os
import subprocess
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


def test_the_machines_endpoint_is_used_where_the_packages_are():
    """In a process of its own, which ends although nobody listens: the exporter's thread goes on trying for a while,
    and draws its pauses from the generator that tests beside it draw from."""
    program = (
        "from prefix_store.tracing import open_tracing\n"
        "tracing = open_tracing('service', None)\n"
        "tracing.tracer.start_span('a').end()\n"
        "tracing.close()\n"
        "print('closed')"
    )
    told = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=told, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.returncode) == ("closed\n", 0), done.stderr
