"""Bad input: a 4xx that names the field (and the line), nothing stored, nobody else affected."""

import contextlib
import json
import select
import socket

import httpx2
import pytest
from production_making import damage
from service_making import complete, error_of
from store_making import rows

from prefix_engine.prefix import Prefix
from prefix_engine.testing import random_prefix, tiny_base


@pytest.fixture(scope="module")
def acme(service):
    return service.tenant()


@pytest.fixture(scope="module")
def alice(service, acme):
    alice = service.user(acme, "alice")
    service.publish(acme.scope, "alice", "voice")
    return alice


def asked(**body):
    return {"model": "alice:voice", "prompt": "hi", "max_tokens": 4, **body}


BAD_COMPLETIONS = [
    ({"model": None}, "model"),
    ({"model": ""}, "model"),
    ({"model": 7}, "model"),
    ({"prompt": 7}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt"),
    ({"prompt": [-1]}, "prompt"),
    ({"prompt": [257]}, "prompt"),
    ({"prompt": [1.5]}, "prompt"),
    ({"prompt": [True]}, "prompt"),
    ({"prompt": ["a", 1]}, "prompt"),
    ({"prompt": "x" * 300}, "prompt"),
    ({"prompt": ["x"] * 200}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 260}, "max_tokens"),
    ({"max_tokens": 1 << 70}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": float("inf")}, "temperature"),
    ({"temperature": "hot"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"best_of": 21}, "best_of"),
    ({"best_of": 1, "n": 2}, None),
    ({"best_of": 2, "stream": True}, None),
    ({"logprobs": 6}, "logprobs"),
    ({"logprobs": -1}, "logprobs"),
    ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    ({"stop": ""}, "stop"),
    ({"stop": ["x", "x" * 257]}, "stop"),
    ({"seed": 1 << 64}, "seed"),
    ({"seed": "x"}, "seed"),
    ({"logit_bias": {"x": 1}}, "logit_bias"),
    ({"logit_bias": {"999": 1}}, "logit_bias"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"suffix": "x"}, "suffix"),
    ({"stream_options": {"include_usage": True}}, None),
    ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ({"frobnicate": 1}, "frobnicate"),
    ({"max_new_tokens": 4}, "max_new_tokens"),
    ({"messages": []}, "messages"),
]


@pytest.mark.parametrize(("change", "param"), BAD_COMPLETIONS)
def test_a_bad_completion_names_its_field(alice, change, param):
    refused = alice.post(
        "/v1/completions",
        content=json.dumps(asked(**change)),
        headers={"content-type": "application/json"},
    )
    assert refused.status_code == 400
    error = error_of(refused)
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param
    assert error["message"]


@pytest.mark.parametrize("model", ["nobody:x", "alice", "alice:", "alice:voice@", "alice:voice@99", "alice:voice@0",
                                   "../../etc/passwd", "alice:../voice", "a" * 200, "alice:voice@ftjob-1", "alice:voice@ftjob-1-step-2", "ALICE:voice"])  # fmt: skip
def test_no_prefixs_name_is_404_and_never_the_base_model(alice, model):
    refused = complete(alice, model)
    assert refused.status_code == 404
    assert error_of(refused)["code"] == "model_not_found"
    streamed = complete(alice, model, stream=True)
    assert streamed.status_code == 404
    for path in (f"/v1/models/{model}", f"/v1/prefixes/{model}"):
        assert alice.get(path).status_code == 404


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"model": "\xff"}', b'{"model": "\\ud800", "prompt": "x"}', b"\x00", b"[" * 4000],
)  # fmt: skip
def test_wrong_json_is_400_on_every_json_route(alice, acme, raw):
    headers = {"content-type": "application/json"}
    for client, path in (
        (alice, "/v1/completions"),
        (alice, "/v1/fine_tuning/jobs"),
        (alice, "/v1/prefixes/alice:voice/promote"),
        (acme, "/v1/users"),
        (acme, "/v1/keys"),
    ):
        refused = client.post(path, content=raw, headers=headers)
        assert refused.status_code == 400, path
        assert error_of(refused)["message"]


def test_a_body_of_another_type_is_400(alice):
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        refused = alice.post("/v1/completions", content=json.dumps(asked()), headers={"content-type": kind})
        assert refused.status_code == 400


BAD_FILES = [
    (b"", None),
    (b"\n\n", None),
    (b"not json\n", 1),
    (rows(("a", "b")) + b"[]\n", 2),
    (rows(("a", "b")) + b"7\n", 2),
    (rows(("a", "b"), ("", "x")), 2),
    (rows(("a", "b"), ("x", "")), 2),
    (rows(("a", "b")) + b'{"prompt": "a"}\n', 2),
    (rows(("a", "b")) + b'{"completion": "a"}\n', 2),
    (rows(("a", "b")) + b'{"prompt": "a", "completion": "b", "x": 1}\n', 2),
    (rows(("a", "b")) + b'{"prompt": 1, "completion": "b"}\n', 2),
    (rows(("a", "b")) + b'{"prompt": "\xff", "completion": "b"}\n', 2),
    (rows(("a", "b")) + b'{"prompt": "\\ud800", "completion": "b"}\n', 2),
    (b'{"messages": []}\n', 1),
    (b"\x1f\x8b\x08\x00", 1),
    (b"[" * 100_000, 1),
]


@pytest.mark.parametrize(("data", "line"), BAD_FILES)
def test_a_bad_file_names_its_line_and_leaves_nothing(service, alice, data, line):
    before = {place for place, _ in service.store.blobs.places()}
    listed = alice.get("/v1/files").json()
    refused = service.upload(alice, data)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "file"
    if line is not None:
        assert f"line {line}:" in error_of(refused)["message"]
    assert {place for place, _ in service.store.blobs.places()} == before
    assert alice.get("/v1/files").json() == listed


def test_a_file_over_the_limit_is_413_and_leaves_nothing(service, alice):
    before = {place for place, _ in service.store.blobs.places()}
    long = rows(("a", "b")) * 40_000
    assert len(long) > 1 << 20
    refused = service.upload(alice, long)
    assert refused.status_code == 413
    assert error_of(refused)["code"] == "too_large"
    assert {place for place, _ in service.store.blobs.places()} == before


def test_a_gigabyte_is_refused_before_it_is_read(service, alice):
    """By its length where it says one; else as soon as it has sent too much."""
    sent = 0

    def endless():
        nonlocal sent
        yield b'--x\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        while sent < 1 << 30:
            sent += 1 << 16
            yield rows(("a", "b")) * ((1 << 16) // 36)

    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = None
    with contextlib.suppress(httpx2.TransportError):  # cut, since it went on and on
        answer = alice.post("/v1/files", content=endless(), headers=headers)
    assert answer is None or answer.status_code == 413
    assert sent < 64 << 20
    head = f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {alice.key}\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=120) as raw:
        raw.sendall(f"{head}content-length: {1 << 30}\r\n\r\n".encode())
        assert raw.recv(1 << 16).startswith(b"HTTP/1.1 413 ")
    assert complete(alice, "alice:voice").status_code == 200


@pytest.mark.parametrize(
    ("address", "key", "size", "status"),
    [
        ("/v1/files", "pfx_live_nobody", 2 << 20, 401),
        ("/v1/files", "", 3 << 20, 413),
        ("/v1/completions", "", 3 << 19, 413),
    ],
)
def test_who_still_sends_when_he_is_answered_reads_the_answer(service, alice, address, key, size, status):
    """A connection closed at once is reset, and the answer is lost with it: a proxy then says 502."""
    head = f"POST {address} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or alice.key}\r\n"
    with socket.create_connection(("127.0.0.1", service.port), timeout=120) as raw:
        raw.sendall(f"{head}content-length: {size}\r\n\r\n".encode())
        assert select.select([raw], [], [], 120)[0], "nobody answered"  # before a byte of the body was sent
        for at in range(0, size, 1 << 18):
            raw.sendall(b"x" * min(1 << 18, size - at))
        answer = b"".join(iter(lambda: raw.recv(1 << 16), b""))
    assert answer.startswith(f"HTTP/1.1 {status} ".encode())
    assert b"connection: close" in answer.lower()
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"]


def test_a_json_body_over_the_limit_is_413(alice):
    refused = complete(alice, "alice:voice", prompt="x" * (5 << 20))
    assert refused.status_code == 413

    def chunks():
        yield b'{"model": "'
        for _ in range(6):
            yield b"x" * (1 << 20)

    refused = alice.post("/v1/completions", content=chunks(), headers={"content-type": "application/json"})
    assert refused.status_code == 413


BAD_FORMS = [
    ({"purpose": "assistants"}, "purpose"),
    ({"purpose": ""}, "purpose"),
    ({"expires_after[seconds]": "3600"}, "expires_after[seconds]"),
    ({"frobnicate": "1"}, "frobnicate"),
    ({"purpose": "x" * 5000}, "purpose"),
    ({"user": "alice", "task": "e2e"}, "task"),
]


@pytest.mark.parametrize(("fields", "param"), BAD_FORMS)
def test_a_bad_form_names_its_field(service, acme, fields, param):
    refused = service.upload(acme, **({"user": "alice"} | fields))
    assert refused.status_code == 400
    assert error_of(refused)["param"] == param


def test_a_tenants_upload_must_say_whose_it_is(service, acme, alice):
    refused = service.upload(acme)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "user"
    assert service.upload(acme, user="nobody").status_code == 404
    assert service.upload(acme, user="../x").status_code == 404
    assert service.upload(acme, task="../x").status_code == 400
    assert service.upload(acme, user="task:e2e").status_code == 400
    assert service.upload(acme, user="alice").json()["user"] == "alice"
    assert service.upload(acme, task="e2e").json()["task"] == "e2e"
    assert service.upload(alice, task="e2e").status_code == 403


def test_no_form_at_all_is_400(alice):
    for content, kind in (
        (b"{}", "application/json"),
        (b"x", "multipart/form-data"),
        (b"x", "multipart/form-data; boundary=y"),
        (b"--y\r\n", "multipart/form-data; boundary=y"),
        (b'--y\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--y--\r\n', "multipart/form-data; boundary=y"),
    ):  # fmt: skip
        refused = alice.post("/v1/files", content=content, headers={"content-type": kind})
        assert refused.status_code == 400
        assert error_of(refused)["param"] == "file"


BAD_JOBS = [
    ({"training_file": None}, 400, "training_file"),
    ({"training_file": []}, 400, "training_file"),
    ({"training_file": "file-x"}, 404, None),
    ({"model": "nobody:x"}, 404, "model"),
    ({"suffix": None}, 400, "suffix"),
    ({"suffix": "../x"}, 400, "suffix"),
    ({"suffix": "task"}, 400, "suffix"),
    ({"suffix": "gpt2-medium"}, 400, "suffix"),
    ({"suffix": "a:b"}, 400, "suffix"),
    ({"suffix": "v" * 65}, 400, "suffix"),
    ({"suffix": ""}, 400, "suffix"),
    ({"prefix": "alice:x"}, 400, "suffix"),
    ({"hyperparameters": {"n_epochs": 0}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"n_epochs": 1.5}}, 400, "hyperparameters.n_epochs"),
    ({"hyperparameters": {"learning_rate": -1}}, 400, "hyperparameters.learning_rate"),
    ({"hyperparameters": {"learning_rate": float("nan")}}, 400, "hyperparameters.learning_rate"),
    ({"hyperparameters": {"prefix_length": 513}}, 400, "hyperparameters.prefix_length"),
    ({"hyperparameters": {"prefix_length": 0}}, 400, "hyperparameters.prefix_length"),
    ({"hyperparameters": {"parametrization": "lora"}}, 400, "hyperparameters.parametrization"),
    ({"hyperparameters": {"init_text": ""}}, 400, "hyperparameters.init_text"),
    ({"hyperparameters": {"frobnicate": 1}}, 400, "hyperparameters.frobnicate"),
    ({"hyperparameters": {"learning_rate": 1e-3, "learning_rate_multiplier": 2}}, 400, "hyperparameters.learning_rate"),
    ({"hyperparameters": {"max_steps": 5}, "method": {"type": "supervised", "supervised": {"hyperparameters": {"max_steps": 5}}}}, 400, "hyperparameters.max_steps"),
    ({"method": {"type": "dpo"}}, 400, "method.type"),
    ({"method": {"type": "supervised", "supervised": {"hyperparameters": {"x": 1}}}}, 400, "hyperparameters.x"),
    ({"seed": -1}, 400, "seed"),
    ({"metadata": {"k": "v" * 513}}, 400, None),
    ({"metadata": {"k": "\x00"}}, 400, "metadata.k"),
    ({"integrations": [{"type": "wandb"}]}, 400, "integrations"),
    ({"n_epochs": 3}, 400, "n_epochs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "status", "param"), BAD_JOBS)
def test_a_bad_job_names_its_field_and_makes_nothing(service, alice, change, status, param):
    file = service.upload(alice).json()["id"]
    before = alice.get("/v1/fine_tuning/jobs").json()
    body = {"model": "tiny", "training_file": file, "suffix": "fresh", **change}
    content = json.dumps({k: v for k, v in body.items() if v is not None})
    refused = alice.post(
        "/v1/fine_tuning/jobs", content=content, headers={"content-type": "application/json"}
    )
    assert refused.status_code == status
    assert error_of(refused)["param"] == param
    assert alice.get("/v1/fine_tuning/jobs").json() == before


def test_a_tenants_job_must_name_the_prefix(service, acme, alice):
    file = service.upload(alice).json()["id"]
    job = {"model": "tiny", "training_file": file}
    for change, param in (
        ({}, "prefix"),
        ({"suffix": "x"}, "prefix"),
        ({"prefix": "alice"}, "prefix"),
        ({"prefix": "alice:x@1"}, "prefix"),
        ({"prefix": "../x:y"}, "prefix"),
    ):
        refused = acme.post("/v1/fine_tuning/jobs", json=job | change)
        assert refused.status_code == 400
        assert error_of(refused)["param"] == param
    assert acme.post("/v1/fine_tuning/jobs", json=job | {"prefix": "nobody:x"}).status_code == 404
    made = acme.post("/v1/fine_tuning/jobs", json=job | {"prefix": "alice:x"}).json()
    assert made["prefix"] == "alice:x"
    assert acme.post(f"/v1/fine_tuning/jobs/{made['id']}/cancel").json()["status"] == "cancelled"


def test_a_task_that_cannot_be_trained_is_not_made(service, acme):
    job = {"model": "tiny", "training_file": "file-none", "prefix": "task:never"}
    assert acme.post("/v1/fine_tuning/jobs", json=job).status_code == 404
    assert "never" not in [task["id"] for task in acme.get("/v1/tasks").json()["data"]]


@pytest.mark.parametrize(
    "name", ["", "A", "a b", "../x", "a:b", "a@b", "a+b", "a/b", "-a", "x" * 65, "task", "gpt2", "tiny\x00"]
)
def test_a_bad_user_id_is_refused(acme, name):
    refused = acme.post("/v1/users", json={"id": name})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "id"


def test_a_name_that_is_taken_is_409_and_not_tried_again(acme, alice):
    refused = acme.post("/v1/users", json={"id": "alice"})
    assert refused.status_code == 409
    assert refused.headers["x-should-retry"] == "false"


def test_unknown_scopes_and_users_of_a_key_are_refused(acme):
    refused = acme.post("/v1/keys", json={"scopes": ["everything"]})
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "scopes"
    assert acme.post("/v1/keys", json={"scopes": []}).status_code == 400
    assert acme.post("/v1/keys", json={"user": "nobody"}).status_code == 404


@pytest.mark.parametrize("path", ["/v1/files?limit=0", "/v1/files?limit=x", "/v1/fine_tuning/jobs?limit=5000",
                                  "/v1/usage?start=yesterday", "/v1/files?order=asc", "/v1/models/a%00b", "/v1/files?after=%00"])  # fmt: skip
def test_bad_addresses_are_4xx(alice, path):
    refused = alice.get(path)
    assert refused.status_code in {400, 404}
    assert error_of(refused)["message"]


def test_unknown_routes_and_methods_answer_in_the_envelope(alice):
    assert error_of(alice.get("/v1/nothing"))["code"] == "not_found"
    assert alice.put("/v1/files").status_code == 405
    assert error_of(alice.put("/v1/files"))["code"] == "method_not_allowed"


def test_a_version_of_another_base_is_409(service, acme, alice):
    other = tiny_base(positions=256, seed=9)
    version = service.publish(acme.scope, "alice", "elsewhere", prefix=random_prefix(other, 4))
    # The row says this base, the bytes another: found when it is loaded.
    refused = complete(alice, version.full_name)
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "base_mismatch"
    assert refused.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("damage", ["shape", "truncated", "nan", "garbage"])
def test_a_bad_tensor_file_fails_its_own_prefix_alone(service, acme, alice, damage):
    good = random_prefix(service.base, 4)
    bad = {
        "shape": lambda: Prefix(good.tensor[:1], 4, service.base.fingerprint).to_bytes(),
        "truncated": lambda: good.to_bytes()[:-8],
        "nan": lambda: Prefix(good.tensor * float("nan"), 4, service.base.fingerprint).to_bytes(),
        "garbage": lambda: b"\x80\x04\x95 no tensors",
    }[damage]()
    service.publish(acme.scope, "alice", f"bad-{damage}", prefix=bad)
    for stream in (False, True):
        refused = complete(alice, f"alice:bad-{damage}", stream=stream)
        assert refused.status_code == 500
        assert error_of(refused)["code"] in {"corrupt", "non_finite"}
        assert refused.headers["x-should-retry"] == "false"
    assert complete(alice, "alice:voice").status_code == 200


def _flip(data):
    half = len(data) // 2
    return data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]


def test_a_corrupt_blob_fails_only_its_own_prefix(service, acme, alice):
    before = {place for place, _ in service.store.blobs.places()}
    service.publish(acme.scope, "alice", "damaged", seed=3)
    (place,) = [
        p for p, _ in service.store.blobs.places() if p not in before and p.object_id.startswith("ver")
    ]
    damage(service.store, place, _flip)
    refused = complete(alice, "alice:damaged")
    assert refused.status_code == 500
    assert error_of(refused)["code"] == "corrupt"
    assert complete(alice, "alice:voice").status_code == 200
