"""A service and a worker as real processes, watched from outside: metrics, logs, spans, and no secret in any of them."""

import json
import re
import signal
from types import SimpleNamespace
from typing import get_args

import httpx2
import pytest
from collector import Collector, attributes
from prometheus_client.parser import text_string_to_metric_families
from real_processes import ADMIN_KEY, Machine, ended
from service_making import complete, events
from waiting import wait_until

from service.cli.children import free_port
from service.errors import Refusal

pytestmark = pytest.mark.timeout(600)
BASE = "gpt2-mini"
ROWS = [{"prompt": f"okapi-prompt {i}", "completion": f"the heron-completion number {i}"} for i in range(24)]
TRACE, JOB_TRACE = f"{0xA1:032x}", f"{0xB2:032x}"
WORDS = (  # in everything that the clients send: texts, names, ids of theirs
    "okapi", "heron", "lemur", "ibex", "tapir", "quokka", "dugong", "narwhal", "pangolin", "axolotl", "wombat",
)  # fmt: skip
COUNTERS = {
    "prefix_http_requests", "prefix_tokens", "prefix_erasures", "prefix_engine_steps", "prefix_engine_decoded_rows",
    "prefix_engine_generated_tokens", "prefix_engine_prefill_tokens", "prefix_engine_prompt_cache_hits",
    "prefix_engine_prompt_cache_tokens", "prefix_engine_pool_hits", "prefix_engine_pool_misses",
    "prefix_engine_pool_evictions", "prefix_engine_load_seconds", "prefix_refusals",
}  # fmt: skip
HISTOGRAMS = {
    "prefix_http_request_seconds", "prefix_first_token_seconds", "prefix_between_tokens_seconds",
    "prefix_queue_seconds", "prefix_erasure_seconds", "prefix_refusal_seconds",
}  # fmt: skip
GAUGES = {
    "prefix_engine_running", "prefix_engine_waiting", "prefix_engine_rows", "prefix_engine_occupancy",
    "prefix_engine_loading", "prefix_engine_resident_prefixes", "prefix_engine_resident_bytes",
    "prefix_engine_pages_used", "prefix_engine_pages_cached", "prefix_engine_pages_total",
    "prefix_engine_beat_age_seconds", "prefix_feed_age_seconds", "prefix_jobs", "prefix_store_up",
    "prefix_engine_waiting_tokens", "prefix_queue_rows", "prefix_queue_tokens", "prefix_held_bytes", "prefix_sent_bytes",
    "prefix_connections", "prefix_jobs_leased", "prefix_erasures_open", "prefix_erasures_oldest_seconds",
}  # fmt: skip


def parent(trace):
    return {"traceparent": f"00-{trace}-{7:016x}-01"}


def scraped(port):
    with httpx2.Client(trust_env=False) as client:
        return client.get(f"http://127.0.0.1:{port}/metrics").text


def read(text):
    """Metrics by name: type, help, and the samples' values by sample name and labels."""
    return {
        metric.name: SimpleNamespace(
            kind=metric.type,
            told=metric.documentation,
            samples={(s.name, *sorted(s.labels.items())): s.value for s in metric.samples},
        )
        for metric in text_string_to_metric_families(text)
    }


def value(metrics, name, **labels):
    metric = metrics[re.sub(r"_(total|count|sum)$", "", name)]
    return metric.samples[name, *sorted(labels.items())]


def answered(metrics):
    """How many texts have been sent to their ends, of which all tokens are counted."""
    name, told = "prefix_http_requests_total", {"method": "POST", "route": "/v1/completions", "status": "200"}
    counted = value(metrics, "prefix_tokens_total", kind="completion")
    if counted != value(metrics, "prefix_engine_generated_tokens_total"):
        return 0
    return metrics["prefix_http_requests"].samples.get((name, *sorted(told.items())), 0)


def asked_everywhere(machine, key):
    """Every route of the service with words of the client's in path, query, headers and body."""
    client = machine.client(key)
    document = client.get("/openapi.json").json()
    for path, methods in document["paths"].items():
        for method in methods:
            where = re.sub(r"\{.*?\}", "quokka-path", path)
            headers = {"x-request-id": key, "x-narwhal": "narwhal-header", "user-agent": "narwhal"}
            for body in ({"model": "quokka:lemur", "prompt": "okapi", "id": "Quokka Name"}, ["dugong"]):
                client.request(method, f"{where}?after=dugong-query", json=body, headers=headers)
    client.post("/v1/completions", content=b'{"prompt": "okapi', headers={"content-type": "application/json"})
    client.post("/v1/okapi-no-route")
    client.request("DUGONG", "/v1/models")
    form = {"purpose": "fine-tune", "user": "quokka-user"}
    client.post("/v1/files", data=form, files={"file": ("ibex-file.jsonl", b'{"prompt": "heron"\n')})


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What was to be seen of one story; both processes have ended by SIGTERM."""
    port = free_port()
    with Collector() as collector:
        with Machine(
            tmp_path_factory.mktemp("watched"),
            metrics_port=port,
            otel_endpoint=collector.url,
            log_level="DEBUG",
        ) as machine:
            processes = [machine.serve()]
            story = _story(machine, port)
            processes.append(story.worker)
            for process in processes:
                process.send_signal(signal.SIGTERM)
            story.statuses = [ended(process) for process in processes]
            story.logs = {module: machine.said(module) for module in ("service", "trainer_worker")}
        story.spans, story.bodies = collector.spans(), collector.bodies
    return story


def _story(machine, port):
    tenant = machine.tenant("tapir-tenant")
    alice = machine.user(tenant, "axolotl-user")
    file = machine.upload(alice, ROWS)
    body = {
        "model": BASE, "training_file": file, "suffix": "pangolin-prefix", "metadata": {"lemur-key": "lemur-value"},
        "hyperparameters": {"max_steps": 4, "batch_size": 4},
    }  # fmt: skip
    job = alice.post(
        "/v1/fine_tuning/jobs", json=body, headers={"x-request-id": "ask-train.1", **parent(JOB_TRACE)}
    )
    assert job.status_code == 200, job.text
    worker = machine.work()
    ids = {"x-request-id": "ask-text.1", **parent(TRACE)}
    whole = alice.post(
        "/v1/completions", json={"model": BASE, "prompt": "okapi one", "max_tokens": 24}, headers=ids
    )
    refused = [
        alice.post("/v1/completions", json={"model": "wombat:wombat", "prompt": "okapi"}, headers=ids),
        machine.client("pfx_live_wombat").get("/v1/models", headers=ids),
        alice.get("/v1/models", headers={"x-request-id": "okapi with spaces"}),
        alice.get("/v1/models", headers={"x-request-id": alice.key}),
        alice.get("/v1/models"),
    ]
    done = machine.wait(alice, job.json()["id"])
    assert done["status"] == "succeeded", done
    model = f"axolotl-user:pangolin-prefix@{done['id']}"
    texts = [whole.json()["choices"][0]["text"]]
    for _ in range(2):
        answer = complete(
            alice, model, "okapi two", max_tokens=16, n=2, temperature=1, user="quokka", stop="ibex-stop"
        )
        assert answer.status_code == 200, answer.text
        texts += [choice["text"] for choice in answer.json()["choices"]]
    streamed = {"model": model, "prompt": "okapi three", "max_tokens": 16, "stream": True}
    with alice.stream("POST", "/v1/completions", json=streamed) as response:
        texts.append("".join(e["choices"][0]["text"] for e in events(response.iter_lines()) if e["choices"]))
    # What was sent is counted a moment later.
    wait_until(lambda: answered(read(scraped(port))) == 4)
    before = scraped(port)
    for key in (alice.key, tenant.key, ADMIN_KEY):
        asked_everywhere(machine, key)
    assert machine.user(tenant, "wombat-user").get("/v1/models").status_code == 200
    erased = tenant.delete("/v1/users/wombat-user").json()
    assert erased["deleted"]
    keys = [alice.key, tenant.key, ADMIN_KEY, "pfx_live_wombat"]
    return SimpleNamespace(
        worker=worker, job=done, whole=whole, refused=refused, texts=texts, keys=keys, before=before, after=scraped(port)
    )  # fmt: skip


def test_both_processes_end_well(seen):
    assert seen.statuses == [0, 0]


def test_every_metric_is_there_with_its_kind_and_a_help(seen):
    metrics = read(seen.after)
    ours = {name for name in metrics if name.startswith("prefix_") and not name.endswith("_created")}
    assert ours == COUNTERS | HISTOGRAMS | GAUGES
    for names, kind in ((COUNTERS, "counter"), (HISTOGRAMS, "histogram"), (GAUGES, "gauge")):
        assert {name: metrics[name].kind for name in names} == dict.fromkeys(names, kind)
    assert all(metrics[name].told.endswith(".") for name in ours)
    assert metrics["process_resident_memory_bytes"].kind == "gauge"


def test_metrics_tell_what_was_done(seen):
    metrics = read(seen.before)
    counts = {name: value(metrics, f"{name}_count") for name in HISTOGRAMS & {n for n in metrics if "erasure" not in n}
              - {"prefix_http_request_seconds"}}  # fmt: skip
    assert counts["prefix_first_token_seconds"] == 4
    assert counts["prefix_queue_seconds"] == 6  # rows
    generated = value(metrics, "prefix_engine_generated_tokens_total")
    assert 0 < counts["prefix_between_tokens_seconds"] <= generated
    assert value(metrics, "prefix_tokens_total", kind="completion") == generated
    assert (
        value(metrics, "prefix_http_requests_total", method="POST", route="/v1/completions", status="200")
        == 4
    )
    assert value(metrics, "prefix_engine_pool_misses_total") == 1
    assert value(metrics, "prefix_engine_pool_hits_total") == 5
    assert value(metrics, "prefix_engine_load_seconds_total") > 0
    assert value(metrics, "prefix_engine_resident_prefixes") == 1
    assert value(metrics, "prefix_engine_resident_bytes") > 0
    assert 0 < value(metrics, "prefix_engine_occupancy") <= 1
    steps, rows = (value(metrics, f"prefix_engine_{name}") for name in ("steps_total", "rows"))
    decoded = value(metrics, "prefix_engine_decoded_rows_total")
    assert value(metrics, "prefix_engine_occupancy") == pytest.approx(decoded / steps / rows)
    jobs = {labels[1][1]: count for labels, count in metrics["prefix_jobs"].samples.items()}
    assert jobs == {"queued": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0}
    assert value(metrics, "prefix_store_up") == 1
    later = read(seen.after)
    assert value(metrics, "prefix_erasures_total", kind="user") == 0
    assert value(later, "prefix_erasures_total", kind="user") == 1
    assert value(later, "prefix_erasure_seconds_count", kind="user") == 1


def test_counters_never_go_back(seen):
    before, after = read(seen.before), read(seen.after)
    for name in COUNTERS | HISTOGRAMS:
        for sample, count in before[name].samples.items():
            if not sample[0].endswith("_created"):
                assert after[name].samples[sample] >= count, sample


def test_labels_are_few_fixed_words(seen):
    metrics = read(seen.after)
    labels = {}
    for name in COUNTERS | HISTOGRAMS | GAUGES:
        for sample in metrics[name].samples:
            for label, word in sample[1:]:
                labels.setdefault(label, set()).add(word)
    assert set(labels) == {"method", "route", "status", "kind", "reason", "le"}
    assert all(route == "(none)" or route.startswith("/") for route in labels["route"])
    assert all("{" in route or not re.search(r"quokka|okapi|wombat", route) for route in labels["route"])
    assert labels["method"] <= {"GET", "POST", "DELETE", "other"}
    assert labels["kind"] == {"user", "task", "tenant", "prompt", "completion"}
    assert labels["reason"] == set(get_args(Refusal))


def lines(seen, module):
    return [json.loads(line) for line in seen.logs[module].splitlines()]


def test_every_line_of_both_logs_is_one_json_object_with_time_level_and_source(seen):
    for module in seen.logs:
        assert len(lines(seen, module)) > 3
        assert all({"event", "level", "logger", "timestamp"} <= set(line) for line in lines(seen, module))
    assert {line["logger"] for line in lines(seen, "service")} >= {"service", "uvicorn.error"}


def test_a_request_is_found_in_the_log_by_the_id_that_its_answer_bears(seen):
    assert seen.whole.headers["x-request-id"] == "ask-text.1"
    done = [line for line in lines(seen, "service") if line["event"] == "request.done"]
    (text,) = [line for line in done if line["request_id"] == "ask-text.1" and line["status"] == 200]
    assert (text["method"], text["route"]) == ("POST", "/v1/completions")
    usage = seen.whole.json()["usage"]
    assert (text["prompt_tokens"], text["completion_tokens"]) == (
        usage["prompt_tokens"],
        usage["completion_tokens"],
    )
    assert text["seconds"] > 0
    statuses = [answer.status_code for answer in seen.refused]
    assert statuses == [404, 401, 200, 200, 200]
    assert [answer.headers["x-request-id"] for answer in seen.refused[:2]] == ["ask-text.1"] * 2
    made = [answer.headers["x-request-id"] for answer in seen.refused[2:]]
    assert all(re.fullmatch(r"req_[0-9a-f]{24}", name) for name in made)
    assert set(made) <= {line["request_id"] for line in done}


def test_the_workers_lines_name_the_request_that_made_the_job(seen):
    of_job = [line for line in lines(seen, "trainer_worker") if line.get("job") == seen.job["id"]]
    assert {line["request_id"] for line in of_job} == {"ask-train.1"}
    (end,) = [line for line in of_job if line["event"] == "job.attempt_ended"]
    assert (end["how"], end["attempt"]) == ("trained", 1)


@pytest.mark.parametrize("where", ["service", "trainer_worker", "metrics", "spans"])
def test_no_text_name_or_key_is_in(seen, where):
    told = (
        seen.logs.get(where)
        or {
            "metrics": seen.before + seen.after,
            "spans": b"".join(seen.bodies).decode("latin-1"),
        }[where]
    )
    assert len(told) > 500
    assert not [word for word in WORDS if word in told.lower()]
    assert not [key for key in seen.keys if key in told or key[-12:] in told]
    answers = [text.strip() for text in seen.texts if len(text.strip()) > 12]
    assert answers
    assert not [text for text in answers if text[:12] in told]


def test_a_completion_is_one_trace_from_http_through_the_store_to_the_engine(seen):
    spans = {span.name: span for process, span in seen.spans if span.trace_id.hex() == TRACE
             and attributes(span).get("http.response.status_code", 200) == 200}  # fmt: skip
    assert set(spans) >= {"POST /v1/completions", "store.resolve", "engine.row"}
    request, row = spans["POST /v1/completions"], spans["engine.row"]
    assert request.parent_span_id.hex() == f"{7:016x}"
    assert row.parent_span_id == request.span_id
    told = attributes(request)
    assert (told["http.route"], told["http.response.status_code"]) == ("/v1/completions", 200)
    assert told["prefixserve.request_id"] == "ask-text.1"
    told = attributes(row)
    assert told["completion_tokens"] == seen.whole.json()["usage"]["completion_tokens"]
    assert {"queue_seconds", "prefill_seconds", "decode_seconds"} <= set(told)
    assert [event.name for event in row.events] == ["seated", "first_text"]
    assert request.start_time_unix_nano <= row.start_time_unix_nano <= row.end_time_unix_nano
    assert row.end_time_unix_nano <= request.end_time_unix_nano


def test_the_load_of_a_cold_prefix_is_told_by_the_rows_that_waited_for_it(seen):
    rows = [span for _, span in seen.spans if span.name == "engine.row"]
    loaded = [span for span in rows if "prefix.loaded" in {event.name for event in span.events}]
    assert 1 <= len(loaded) <= 2  # rows of the first request, as many as came before it was there
    assert all(attributes(span)["load_seconds"] > 0 for span in loaded)


def test_the_workers_attempt_is_in_the_trace_of_the_request_that_made_the_job(seen):
    in_trace = [(process, span) for process, span in seen.spans if span.trace_id.hex() == JOB_TRACE]
    (request,) = (span for _, span in in_trace if span.name == "POST /v1/fine_tuning/jobs")
    ((process, attempt),) = ((process, span) for process, span in in_trace if span.name == "job.attempt")
    assert process == "prefixserve-worker"
    assert attempt.parent_span_id == request.span_id
    told = attributes(attempt)
    assert (told["prefixserve.job"], told["prefixserve.outcome"]) == (seen.job["id"], "trained")
    assert attempt.events[0].name == "read"


def test_health_is_not_traced(seen):
    assert not [span for _, span in seen.spans if "readyz" in span.name or "livez" in span.name]
