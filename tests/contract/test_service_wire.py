"""The wire as OpenAI's clients know it: shapes, headers, pages, streams, limits, cancellation."""

import json
import threading
import time

import pytest
import service_making
from service_making import ADMIN_KEY, complete, error_of, events, serving

from prefix_engine.testing import tiny_base


@pytest.fixture(scope="module")
def acme(service):
    return service.tenant()


@pytest.fixture(scope="module")
def alice(service, acme):
    alice = service.user(acme, "alice")
    service.publish(acme.scope, "alice", "voice", m=5)
    service.publish(acme.scope, "alice", "free", m=5, offset=0, seed=2)
    return alice


def streamed(client, **body):
    asked = {"prompt": "hello", "max_tokens": 8, "temperature": 0, "stream": True} | body
    with client.stream("POST", "/v1/completions", json=asked) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(response.iter_lines())


def test_a_completion_has_openais_shape_and_says_which_version_answered(alice):
    answer = complete(alice, "alice:voice").json()
    assert answer["object"] == "text_completion"
    assert answer["model"] == "alice:voice"
    assert answer["prefix_version"] == "alice:voice@1"
    (choice,) = answer["choices"]
    assert set(choice) == {"index", "text", "logprobs", "finish_reason"}
    assert choice["finish_reason"] == "length"
    # "hello" and the separator are tokens, the positions of the prefix are not
    assert answer["usage"] == {
        "prompt_tokens": 6,
        "completion_tokens": 8,
        "total_tokens": 14,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert complete(alice, "tiny").json()["prefix_version"] is None
    assert complete(alice, "tiny").json()["usage"]["prompt_tokens"] == 5


def test_a_prefix_changes_the_answer_and_each_its_own_way(alice):
    texts = [
        complete(alice, model, [1, 2, 3], max_tokens=16).json()["choices"][0]["text"]
        for model in ("tiny", "alice:voice", "alice:free")
    ]
    assert len(set(texts)) == 3


def test_the_stream_says_the_same_as_the_whole(alice):
    for model in ("tiny", "alice:voice"):
        whole = complete(alice, model, logprobs=2, echo=True).json()
        lines = streamed(alice, model=model, logprobs=2, echo=True, stream_options={"include_usage": True})
        assert lines[-2:] == ["data: [DONE]", ""] or lines[-1] == "data: [DONE]"
        chunks = list(events(lines))
        pieces = [c["choices"][0] for c in chunks if c["choices"]]
        assert "".join(p["text"] for p in pieces) == whole["choices"][0]["text"]
        assert [p["finish_reason"] for p in pieces[:-1]] == [None] * (len(pieces) - 1)
        assert pieces[-1]["finish_reason"] == "length"
        for column in ("tokens", "token_logprobs", "text_offset", "top_logprobs"):
            joined = [value for p in pieces for value in p["logprobs"][column]]
            assert joined == whole["choices"][0]["logprobs"][column]
        assert [c["usage"] for c in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"] == whole["usage"]
        assert {c["prefix_version"] for c in chunks} == {whole["prefix_version"]}


def test_prompts_and_choices_are_numbered_as_openai_does(alice):
    answer = complete(alice, "alice:voice", ["a", "bc"], n=3, temperature=1, seed=5).json()
    assert [choice["index"] for choice in answer["choices"]] == list(range(6))
    assert answer["usage"]["prompt_tokens"] == 2 + 3
    assert answer["usage"]["completion_tokens"] == 48
    again = complete(alice, "alice:voice", ["a", "bc"], n=3, temperature=1, seed=5).json()
    assert [c["text"] for c in again["choices"]] == [c["text"] for c in answer["choices"]]
    assert len({c["text"] for c in answer["choices"]}) > 2


def test_token_prompts_are_used_exactly_as_given(alice):
    text = complete(alice, "alice:voice", "hello").json()["choices"][0]["text"]
    ids = [*b"hello\n"]
    assert complete(alice, "alice:voice", ids).json()["choices"][0]["text"] == text
    assert complete(alice, "alice:voice", [ids]).json()["choices"][0]["text"] == text
    assert complete(alice, "alice:voice", [*b"hello"]).json()["choices"][0]["text"] != text
    # a text is never parsed for the end token
    assert complete(alice, "tiny", "<|endoftext|>").json()["usage"]["prompt_tokens"] == 13


def test_echo_without_new_tokens_scores_the_prompt(alice):
    ids = [*b"hello world"]
    answer = complete(alice, "alice:voice", ids, max_tokens=0, echo=True, logprobs=1).json()
    (choice,) = answer["choices"]
    assert choice["text"] == "hello world"
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == list("hello world")
    assert logprobs["token_logprobs"][0] is None
    assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
    assert logprobs["text_offset"] == list(range(11))
    assert answer["usage"]["completion_tokens"] == 0
    base = complete(alice, "tiny", ids, max_tokens=0, echo=True, logprobs=1).json()
    assert base["choices"][0]["logprobs"]["token_logprobs"] != logprobs["token_logprobs"]


def test_best_of_gives_the_likeliest_of_what_n_would(alice):
    asked = {"temperature": 1, "seed": 3, "logprobs": 0}
    all_of_them = complete(alice, "alice:voice", "x", n=5, **asked).json()["choices"]
    ranked = sorted(all_of_them, key=lambda c: -sum(c["logprobs"]["token_logprobs"]))
    best = complete(alice, "alice:voice", "x", n=2, best_of=5, **asked).json()
    assert [c["text"] for c in best["choices"]] == [c["text"] for c in ranked[:2]]
    assert [c["index"] for c in best["choices"]] == [0, 1]
    assert best["usage"]["completion_tokens"] == 40


def test_stop_strings_end_the_text_and_are_not_in_it(alice):
    text = complete(alice, "tiny", "x", max_tokens=40).json()["choices"][0]["text"]
    stop = text[10:12]
    answer = complete(alice, "tiny", "x", max_tokens=40, stop=[stop, "never here"]).json()
    assert answer["choices"][0]["text"] == text[: text.index(stop)]
    assert answer["choices"][0]["finish_reason"] == "stop"
    lines = streamed(alice, model="tiny", prompt="x", max_tokens=40, stop=stop)
    assert "".join(e["choices"][0]["text"] for e in events(lines)) == text[: text.index(stop)]


def test_bias_and_penalties_reach_the_engine(alice):
    answer = complete(alice, "tiny", "x", logit_bias={"65": 100}).json()
    assert answer["choices"][0]["text"] == "A" * 8
    other = complete(alice, "tiny", "x", logit_bias={"65": 100}, presence_penalty=2, frequency_penalty=2)
    assert other.json()["choices"][0]["text"].startswith("A")
    greedy = complete(alice, "tiny", "x").json()["choices"][0]["text"]
    assert (
        complete(alice, "tiny", "x", temperature=1.9, top_k=1, seed=1).json()["choices"][0]["text"] == greedy
    )


def test_every_answer_bears_the_headers_that_clients_look_for(service, alice):
    seen = set()
    for response in (
        complete(alice, "alice:voice"),
        alice.get("/v1/models"),
        alice.get("/v1/models/nobody:x"),
        service.client(None).get("/v1/models"),
        service.client(None).get("/readyz"),
        alice.post("/v1/completions", json={}),
    ):
        assert response.headers["x-request-id"].startswith("req_")
        assert int(response.headers["openai-processing-ms"]) >= 0
        assert response.headers["openai-version"]
        assert response.headers["cache-control"] == "no-store"
        seen.add(response.headers["x-request-id"])
    assert len(seen) == 6


def test_models_begin_with_the_base_and_list_live_prefixes(service, acme, alice):
    service.publish(acme.scope, "alice", "candidate", promote=False)
    models = alice.get("/v1/models").json()
    assert models["object"] == "list"
    assert models["data"][0]["id"] == "tiny"
    names = [model["id"] for model in models["data"]]
    assert "alice:voice" in names
    assert "alice:candidate" not in names
    assert alice.get("/v1/models/alice:voice").json()["prefix_version"] == "alice:voice@1"
    waiting = alice.get("/v1/models/alice:candidate")
    assert waiting.status_code == 404
    assert "candidate waits" in error_of(waiting)["message"]
    asked = complete(alice, "alice:candidate")
    assert asked.status_code == 404
    assert "candidate waits" in error_of(asked)["message"]
    assert complete(alice, "alice:candidate@1").status_code == 200
    shown = alice.get("/v1/prefixes/alice:candidate").json()
    assert shown["live_version"] is None
    promoted = alice.post("/v1/prefixes/alice:candidate/promote", json={"version": 1}).json()
    assert promoted["live_version"] == 1
    assert complete(alice, "alice:candidate").status_code == 200
    refused = alice.delete("/v1/models/tiny")
    assert refused.status_code == 409


def test_promote_and_roll_back_move_what_the_bare_name_means(service, acme, alice):
    for seed in range(3):
        service.publish(acme.scope, "alice", "moved", seed=seed)
    assert complete(alice, "alice:moved").json()["prefix_version"] == "alice:moved@3"
    assert alice.post("/v1/prefixes/alice:moved/rollback").json()["live_version"] == 2
    assert complete(alice, "alice:moved").json()["prefix_version"] == "alice:moved@2"
    assert alice.post("/v1/prefixes/alice:moved/rollback").json()["live_version"] == 1
    refused = alice.post("/v1/prefixes/alice:moved/rollback")
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "no_older_version"
    alice.post("/v1/prefixes/alice:moved/promote", json={"version": 3})
    assert complete(alice, "alice:moved").json()["prefix_version"] == "alice:moved@3"


def test_files_are_listed_page_by_page_and_given_back_as_sent(service, acme):
    bob = service.user(acme, "bob")
    data = b'{"prompt": "p\xc3\xa4", "completion": "c"}\n' * 9
    sent = [service.upload(bob, data + b"\n" * i, name=f"{i}.jsonl").json() for i in range(5)]
    assert sent[0]["status"] == "processed"
    assert sent[0]["rows"] == 9
    assert sent[0]["bytes"] == len(data)
    seen, after = [], None
    while True:
        page = bob.get("/v1/files", params={"limit": 2} | ({"after": after} if after else {})).json()
        seen += [file["id"] for file in page["data"]]
        assert page["first_id"] == page["data"][0]["id"]
        assert page["last_id"] == page["data"][-1]["id"]
        after = page["last_id"]
        if not page["has_more"]:
            break
    assert seen == [file["id"] for file in reversed(sent)]
    assert bob.get(f"/v1/files/{sent[2]['id']}/content").content == data + b"\n\n"
    assert bob.get("/v1/files?purpose=batch").json()["data"] == []


def test_the_form_may_come_in_any_order_and_any_pieces(service, acme, alice):
    data = b'{"prompt": "p", "completion": "c"}\n' * 20
    parts = {
        "purpose": b'content-disposition: form-data; name="purpose"\r\n\r\nfine-tune',
        "user": b'content-disposition: form-data; name="user"\r\n\r\nalice',
        "file": b'content-disposition: form-data; name="file"; filename="../../t.jsonl"\r\n'
        b"content-type: text/plain\r\n\r\n" + data,
    }
    for order in (("purpose", "user", "file"), ("file", "user", "purpose"), ("user", "file", "purpose")):
        body = b"".join(b"--b\r\n" + parts[name] + b"\r\n" for name in order) + b"--b--\r\n"
        for size in (1, 7, 64, len(body)):
            pieces = (body[i : i + size] for i in range(0, len(body), size))
            made = acme.post(
                "/v1/files", content=pieces, headers={"content-type": "multipart/form-data; boundary=b"}
            )
            assert made.status_code == 200, made.text
            assert made.json()["filename"] == "t.jsonl"
            assert acme.get(f"/v1/files/{made.json()['id']}/content").content == data


def test_an_idempotency_key_makes_one_thing(service, acme):
    carol = service.user(acme, "carol")
    files = {"file": ("a.jsonl", b'{"prompt": "p", "completion": "c"}\n')}
    key = {"idempotency-key": "once"}
    both = [
        carol.post("/v1/files", data={"purpose": "fine-tune"}, files=files, headers=key).json()["id"]
        for _ in range(2)
    ]
    assert both[0] == both[1]
    job = {"model": "tiny", "training_file": both[0], "suffix": "v"}
    key = {"idempotency-key": "job"}
    jobs = [carol.post("/v1/fine_tuning/jobs", json=job, headers=key).json()["id"] for _ in range(2)]
    assert jobs[0] == jobs[1]
    other = carol.post("/v1/fine_tuning/jobs", json=job | {"suffix": "w"}, headers=key)
    assert other.status_code == 422
    assert len(carol.get("/v1/fine_tuning/jobs").json()["data"]) == 1
    carol.post(f"/v1/fine_tuning/jobs/{jobs[0]}/cancel")


def test_a_job_is_shown_as_openai_does_and_can_be_cancelled_once(service, acme):
    dora = service.user(acme, "dora")
    file = service.upload(dora).json()["id"]
    body = {
        "model": "tiny",
        "training_file": file,
        "suffix": "voice",
        "seed": 7,
        "metadata": {"team": "blue"},
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": "auto"}}},
        "hyperparameters": {"prefix_length": 5},
    }  # fmt: skip
    job = dora.post("/v1/fine_tuning/jobs", json=body).json()
    assert job["object"] == "fine_tuning.job"
    assert job["status"] == "queued"
    assert job["prefix"] == "dora:voice"
    asked = {"n_epochs": 2, "prefix_length": 5}
    assert job["hyperparameters"] == {"batch_size": "auto", "learning_rate_multiplier": "auto", **asked}
    assert job["method"]["supervised"]["hyperparameters"] == job["hyperparameters"]
    assert job["seed"] == 7
    assert job["evaluation"] is None
    assert job["result_files"] == []
    assert dora.get(f"/v1/fine_tuning/jobs/{job['id']}").json() == job
    listed = dora.get("/v1/fine_tuning/jobs", params={"metadata[team]": "blue"}).json()["data"]
    assert [j["id"] for j in listed] == [job["id"]]
    assert dora.get("/v1/fine_tuning/jobs", params={"metadata[team]": "red"}).json()["data"] == []
    path = f"/v1/fine_tuning/jobs/{job['id']}"
    assert dora.post(f"{path}/cancel").json()["status"] == "cancelled"
    refused = dora.post(f"{path}/cancel")
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "job_ended"
    told = dora.get(f"{path}/events").json()["data"]
    assert [event["object"] for event in told] == ["fine_tuning.job.event"] * 2
    first = dora.get(f"{path}/events?limit=1").json()
    assert first["has_more"]
    assert dora.get(f"{path}/events?after={first['last_id']}").json()["data"] == told[1:]


def test_narrow_keys_are_refused_what_they_may_not(service, acme, alice):
    narrow = service.user(acme, "alice", scopes=["generate"])
    assert complete(narrow, "alice:voice").status_code == 200
    for refused in (
        service.upload(narrow),
        narrow.get("/v1/files"),
        narrow.delete("/v1/models/alice:voice"),
        narrow.get("/v1/fine_tuning/jobs"),
        narrow.post("/v1/prefixes/alice:voice/promote", json={"version": 1}),
    ):
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "insufficient_permissions"
    reader = service.user(acme, "alice", scopes=["prefixes:read"])
    assert complete(reader, "alice:voice").status_code == 403
    assert reader.get("/v1/models").status_code == 200


def test_a_revoked_key_is_dead_at_once(service, acme, alice):
    made = acme.post("/v1/keys", json={"user": "alice"}).json()
    assert set(made) >= {"id", "api_key", "user", "scopes"}
    with service.client(made["api_key"]) as client:
        assert client.get("/v1/models").status_code == 200
        assert acme.delete(f"/v1/keys/{made['id']}").json()["deleted"]
        assert client.get("/v1/models").status_code == 401
    listed = acme.get("/v1/keys").text
    assert made["api_key"] not in listed
    assert made["id"] not in listed


def test_usage_counts_tokens_by_user_and_day(service, acme):
    erin = service.user(acme, "erin")
    service.publish(acme.scope, "erin", "voice")
    complete(erin, "erin:voice", [1, 2, 3], max_tokens=4)
    streamed(erin, model="tiny", prompt=[1, 2], max_tokens=5)
    complete(acme, "erin:voice", [1], max_tokens=2)  # a tenant's key with a user's prefix: the user's use
    (day,) = erin.get("/v1/usage").json()["data"]
    assert day | {"user": "erin", "requests": 3, "prompt_tokens": 6, "completion_tokens": 11} == day
    (same,) = acme.get("/v1/usage?user=erin").json()["data"]
    assert same == day
    assert acme.get("/v1/usage?start=2000-01-01&end=2000-01-02").json()["data"] == []


def test_limits_of_a_tenant_answer_429_with_the_time_to_wait(service):
    small = service.tenant(requests_per_minute=2)
    answers = [complete(small, "tiny") for _ in range(3)]
    assert [a.status_code for a in answers] == [200, 200, 429]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "2"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "1"
    assert error_of(answers[2])["code"] == "rate_limit_exceeded"
    assert 0 < int(answers[2].headers["retry-after"]) <= 60
    assert int(answers[2].headers["retry-after-ms"]) <= 60_000


def test_a_users_key_is_not_told_what_is_left_of_its_tenants_limits(service):
    roomy = service.tenant(requests_per_minute=9, tokens_per_day=1000)
    told = [set(complete(who, "tiny").headers) for who in (roomy, service.user(roomy, "alice"))]
    kinds = {"requests", "tokens"}
    assert told[0] >= {f"x-ratelimit-{what}-{kind}" for what in ("limit", "remaining") for kind in kinds}
    assert told[1] >= {f"x-ratelimit-limit-{kind}" for kind in kinds}
    assert not [name for name in told[1] if "remaining" in name or "reset" in name]


def test_a_used_up_quota_is_429_and_not_tried_again(service):
    small = service.tenant(tokens_per_day=20)
    assert complete(small, "tiny").status_code == 200
    assert complete(small, "tiny").status_code == 200
    assert small.get("/v1/usage").status_code == 200  # writes what was gathered
    refused = complete(small, "tiny")
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "insufficient_quota"
    assert refused.headers["x-should-retry"] == "false"


def test_a_full_queue_refuses_only_its_own_tenant(tmp_path):
    with serving(tmp_path, rows=1) as service:
        small, other = service.tenant(max_queued=3), service.tenant()
        step = service.parts.engine._loop._runner.step

        def slow(plan):
            time.sleep(0.02)
            return step(plan)

        service.parts.engine._loop._runner.step = slow
        threads = [
            threading.Thread(target=complete, args=(service.client(small.key), "tiny"), kwargs={"max_tokens": 100})
            for _ in range(4)
        ]  # fmt: skip
        threads[0].start()
        while not service.parts.engine.stats().running:
            time.sleep(0.01)
        time.sleep(0.1)
        for thread in threads[1:]:
            thread.start()
        while service.parts.tickets.rows.held(small.tenant_id) < 3:
            time.sleep(0.01)
        refused = complete(small, "tiny")
        assert refused.status_code == 429
        assert error_of(refused)["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert complete(other, "tiny").status_code == 200
        for thread in threads:
            thread.join(120)


def test_256_queued_requests_of_a_tenant_are_taken_by_default(tmp_path):
    with serving(tmp_path, rows=2) as service:
        acme = service.tenant()
        answer = complete(acme, "tiny", ["x"] * 128, max_tokens=1)
        assert len(answer.json()["choices"]) == 128
        got = []

        def ask():
            with service.client(acme.key) as client:
                got.append(complete(client, "tiny", max_tokens=2).status_code)

        threads = [threading.Thread(target=ask) for _ in range(256)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert got == [200] * 256


def test_a_deadline_that_passes_is_503(service, alice):
    asked = {"model": "tiny", "prompt": "x", "max_tokens": 250, "min_tokens": 250}
    late = alice.post("/v1/completions", json=asked, headers={"x-deadline-seconds": "0.001"})
    assert late.status_code == 503
    assert error_of(late)["code"] in {"deadline_exceeded", "overloaded"}
    assert int(late.headers["retry-after"]) >= 1
    bad = alice.post("/v1/completions", json=asked, headers={"x-deadline-seconds": "-1"})
    assert bad.status_code == 400


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_row(own_service, stream):
    acme = own_service.tenant()
    step = own_service.parts.engine._loop._runner.step

    def slow(plan):
        time.sleep(0.02)
        return step(plan)

    own_service.parts.engine._loop._runner.step = slow
    impatient = own_service.client(acme.key)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 240, "min_tokens": 240, "stream": stream}
    if stream:
        with impatient.stream("POST", "/v1/completions", json=body) as response:
            next(response.iter_lines())
    else:
        with pytest.raises(service_making.httpx2.ReadTimeout):
            impatient.post("/v1/completions", json=body, timeout=0.5)
    impatient.close()
    gone = time.monotonic()
    while own_service.parts.engine.stats().running or own_service.parts.tickets.count():
        assert time.monotonic() < gone + 60
        time.sleep(0.01)


def test_health_needs_no_key_and_the_document_describes_every_route(service):
    with service.client(None) as nobody:
        assert nobody.get("/livez").json() == {"status": "ok"}
        assert nobody.get("/readyz").json() == {"status": "ok"}
        document = nobody.get("/openapi.json").json()
        assert nobody.get("/docs").status_code == 200
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert operation.get("description"), (path, method)
            shown = operation["responses"]["200"]
            if "content" in shown and "application/json" in shown["content"] and "/content" not in path:
                assert "example" in shown["content"]["application/json"], (path, method)


def test_metrics_have_a_port_of_their_own_and_name_no_tenant(tmp_path):
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serving(tmp_path, metrics_port=port) as service:
        acme = service.tenant("canary-tenant")
        service.user(acme, "canary-user")
        service.publish(acme.scope, "canary-user", "canary-prefix")
        assert complete(acme, "canary-user:canary-prefix", "canary-prompt").status_code == 200
        assert complete(acme, "canary-user:nothing").status_code == 404
        with service_making.httpx2.Client(trust_env=False) as client:
            text = client.get(f"http://127.0.0.1:{port}/metrics").text
        assert service.client(acme.key).get("/metrics").status_code == 404
    assert "canary" not in text
    assert acme.scope.tenant_id not in text
    assert 'prefix_http_requests_total{method="POST",route="/v1/completions",status="200"} 1.0' in text
    for name in ("prefix_engine_resident_prefixes 1.0", "prefix_engine_pool_misses_total 1.0",
                 'prefix_jobs{status="succeeded"} 1.0', "prefix_first_token_seconds_count 1.0"):  # fmt: skip
        assert name in text


def test_tenants_are_made_listed_and_their_names_are_unique(service):
    with service.client(ADMIN_KEY) as admin:
        made = admin.post("/v1/tenants", json={"name": "Only One"}).json()
        assert set(made) >= {"id", "name", "api_key"}
        again = admin.post("/v1/tenants", json={"name": "Only One"})
        assert again.status_code == 409
        listed = admin.get("/v1/tenants").json()
        assert made["id"] in [tenant["id"] for tenant in listed["data"]]
        assert made["api_key"] not in json.dumps(listed)


def test_a_base_with_another_name_is_served_under_it(tmp_path):
    with serving(tmp_path, base=tiny_base("my-gpt2", positions=64)) as service:
        acme = service.tenant()
        assert acme.get("/v1/models").json()["data"][0]["id"] == "my-gpt2"
        assert complete(acme, "my-gpt2").status_code == 200
        assert complete(acme, "gpt2-mini").status_code == 404
        assert complete(acme, "my-gpt2", max_tokens=60).status_code == 400


def test_an_evaluation_is_kept_as_it_was_asked_for_or_refused_by_name(service, acme):
    erin = service.user(acme, "erin")
    body = {"model": "tiny", "training_file": service.upload(erin).json()["id"], "suffix": "voice"}
    job = erin.post("/v1/fine_tuning/jobs", json=body | {"evaluation": {"metrics": ["bleu"], "gate": "bleu"}})
    wanted = {"metrics": ["bleu"], "prompts": 100, "max_tokens": 64, "gate": "bleu"}
    assert job.json()["evaluation"] == wanted
    assert erin.get(f"/v1/fine_tuning/jobs/{job.json()['id']}").json()["evaluation"] == wanted
    bad = erin.post("/v1/fine_tuning/jobs", json=body | {"evaluation": {"metrics": ["rouge"]}})
    assert bad.status_code == 400
    assert error_of(bad)["param"] == "evaluation.metrics"
    assert "bleu, chrf, ter, exact_match" in error_of(bad)["message"]
