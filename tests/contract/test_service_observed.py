"""What a service tells of itself when something is wrong: its spans, its metrics and its readiness."""

import threading
import time

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import generate_latest
from service_making import complete, events, serving
from sqlalchemy import Engine as Database
from sqlalchemy.exc import OperationalError
from store_making import lapse, queue
from waiting import PATIENCE_S, wait_until

from prefix_store.tracing import Tracing
from service.readiness import HOLD_S
from service.tracing import Traces


def database_away(monkeypatch):
    def away(*_args, **_kwargs):
        raise OperationalError("SELECT 'okapi'", {}, Exception("okapi"))

    monkeypatch.setattr(Database, "connect", away)


@pytest.fixture
def spans(service):
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    service.parts.traces = Traces(Tracing(provider))
    yield exporter
    service.parts.traces = None


def ended(spans, name, count=1):
    """The spans of this name; the last of them is written after its answer has left."""
    wait_until(lambda: sum(span.name == name for span in spans.get_finished_spans()) >= count)
    return [span for span in spans.get_finished_spans() if span.name == name]


def test_spans_of_refused_and_failed_requests_hold_a_status_and_no_text(service, spans, monkeypatch):
    acme = service.tenant()
    assert complete(acme, "okapi:okapi").status_code == 404
    with monkeypatch.context() as patched:
        patched.setattr(service.parts.admission, "quota", lambda *_: 1 / 0)
        assert complete(acme, "tiny", "okapi").status_code == 500
    absent, failed = ended(spans, "POST /v1/completions", 2)
    assert absent.attributes["http.response.status_code"] == 404
    assert absent.status.status_code is StatusCode.UNSET
    assert failed.attributes["http.response.status_code"] == 500
    assert failed.status.status_code is StatusCode.ERROR
    told = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "okapi" not in told
    assert "division" not in told


def test_a_row_whose_client_went_away_has_a_span_too(service, spans):
    acme = service.tenant()
    body = {"model": "tiny", "prompt": "x", "max_tokens": 250, "min_tokens": 250, "stream": True}
    with acme.stream("POST", "/v1/completions", json=body) as response:
        next(events(response.iter_lines()))
    (row,) = ended(spans, "engine.row")
    assert 0 < row.attributes["completion_tokens"] <= 250
    assert "seated" in {event.name for event in row.events}


def test_a_service_that_nobody_collects_spans_of_makes_none(service):
    assert service.parts.traces is None


def test_a_database_that_is_away_costs_metrics_the_job_counts_alone(own_service, monkeypatch):
    registry = own_service.parts.telemetry.registry
    assert 'prefix_jobs{status="queued"} 0.0' in generate_latest(registry).decode()
    with monkeypatch.context() as patched:
        database_away(patched)
        text = generate_latest(registry).decode()
        wait_until(lambda: own_service.parts.not_ready() is not None)
    assert "prefix_store_up 0.0" in text
    assert "prefix_engine_steps_total 0.0" in text
    assert 'prefix_jobs{status="queued"}' not in text
    wait_until(lambda: own_service.parts.not_ready() is None)
    assert "prefix_store_up 1.0" in generate_latest(registry).decode()


def test_a_loop_on_readiness_asks_the_database_once_a_second_and_takes_no_thread_of_authentication(
    own_service, monkeypatch
):
    acme, readiness = own_service.tenant(), own_service.parts.readiness
    ping, hold, asked = readiness._ping, threading.Event(), []

    def slow():
        asked.append(time.monotonic())
        assert hold.wait(PATIENCE_S)
        ping()

    monkeypatch.setattr(readiness, "_ping", slow)
    time.sleep(HOLD_S)
    statuses = []

    def ask():
        with own_service.client(None) as nobody:
            statuses.append(nobody.get("/readyz").status_code)

    asking = [threading.Thread(target=ask) for _ in range(60)]
    for thread in asking:
        thread.start()
    wait_until(lambda: asked)
    assert acme.get("/v1/models").status_code == 200  # though sixty wait for the database's answer
    assert statuses == []
    hold.set()
    for thread in asking:
        thread.join(PATIENCE_S)
    assert statuses == [200] * 60
    began, count = time.monotonic(), len(asked)
    with own_service.client(None) as nobody:
        while time.monotonic() < began + 1.5 * HOLD_S:
            assert nobody.get("/readyz").status_code == 200
    assert len(asked) - count <= (time.monotonic() - began) / HOLD_S + 1


def test_a_scrape_tells_who_trains_and_which_erasures_are_open(tmp_path):
    with serving(tmp_path) as service:
        acme, store, registry = service.tenant(), service.store, service.parts.telemetry.registry
        service.user(acme, "alice")
        service.user(acme, "bob")
        queue(store, acme.scope, store.owners.get(acme.scope, "alice"), "voice")
        claim = store.jobs.claim("w")

        def shown(line):
            return line in generate_latest(registry).decode().splitlines()

        assert store.jobs.heartbeat(claim) == "continue"
        assert shown("prefix_jobs_leased 1.0")
        lapse(store, claim.job_id)
        wait_until(lambda: shown("prefix_jobs_leased 0.0"))  # its worker is dead, and the row goes on to say
        assert shown('prefix_jobs{status="running"} 1.0')
        assert shown("prefix_erasures_open 0.0")
        assert shown("prefix_erasures_oldest_seconds 0.0")
        store.erasure.begin(acme.scope, "bob")
        assert shown("prefix_erasures_open 1.0")
        assert store.erasure.backlog()[1] > 0


def test_a_service_whose_loads_do_not_come_back_is_not_ready_until_they_do(tmp_path, monkeypatch):
    with serving(tmp_path) as service:  # whose watchdog would end this process
        acme = service.tenant()
        service.user(acme, "alice")
        service.publish(acme.scope, "alice", "voice")
        hold, held, registry = threading.Event(), threading.Event(), service.parts.store.registry
        read = registry.read

        def slow(resolved):
            held.set()
            assert hold.wait(PATIENCE_S)
            return read(resolved)

        monkeypatch.setattr(type(registry), "read", lambda _self, resolved: slow(resolved))
        got = []
        asking = threading.Thread(target=lambda: got.append(complete(acme, "alice:voice").status_code))
        asking.start()
        assert held.wait(PATIENCE_S)
        brief = service.parts.settings.model_copy(update={"stuck_seconds": 2.0})
        monkeypatch.setattr(service.parts, "settings", brief)
        wait_until(lambda: service.parts.not_ready() == "the engine does not turn")
        assert service.client(None).get("/readyz").json() == {"status": "the engine does not turn"}
        hold.set()
        asking.join(PATIENCE_S)
        assert got == [200]
        wait_until(lambda: service.parts.not_ready() is None)
