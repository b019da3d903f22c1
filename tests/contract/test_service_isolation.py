"""Every route with own, foreign and absent ids: foreign and absent answers are the same."""

import re

import pytest
from service_making import ADMIN_KEY, complete, error_of

PLAIN = {"prompt": "x", "max_tokens": 1}
JOB = {"model": "tiny", "suffix": "voice"}

# method, path with {id}, body with {id}, which of the owner's ids goes in
BY_USER = [
    ("GET", "/v1/models/{id}", None, "name"),
    ("GET", "/v1/models/{id}", None, "version"),
    ("DELETE", "/v1/models/{id}", None, "name"),
    ("DELETE", "/v1/models/{id}", None, "version"),
    ("POST", "/v1/completions", {**PLAIN, "model": "{id}"}, "name"),
    ("POST", "/v1/completions", {**PLAIN, "model": "{id}"}, "version"),
    ("GET", "/v1/models/{id}", None, "checkpoint"),
    ("DELETE", "/v1/models/{id}", None, "checkpoint"),
    ("POST", "/v1/completions", {**PLAIN, "model": "{id}"}, "checkpoint"),
    ("POST", "/v1/completions", {**PLAIN, "model": "alice:voice@{id}"}, "job"),
    ("POST", "/v1/completions", {**PLAIN, "model": "{id}", "stream": True}, "name"),
    ("GET", "/v1/prefixes/{id}", None, "name"),
    ("POST", "/v1/prefixes/{id}/promote", {"version": 1}, "name"),
    ("POST", "/v1/prefixes/{id}/rollback", {}, "name"),
    ("GET", "/v1/files/{id}", None, "file"),
    ("GET", "/v1/files/{id}/content", None, "file"),
    ("DELETE", "/v1/files/{id}", None, "file"),
    ("DELETE", "/v1/files/{id}?versions=true", None, "file"),
    ("GET", "/v1/files?after={id}", None, "file"),
    ("POST", "/v1/fine_tuning/jobs", {**JOB, "training_file": "{id}"}, "file"),
    ("POST", "/v1/fine_tuning/jobs", {**JOB, "training_file": "{own_file}", "validation_file": "{id}"}, "file"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "{id}", "training_file": "{own_file}", "suffix": "v"}, "name"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "{id}", "training_file": "{own_file}", "suffix": "v"}, "version"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "{id}", "training_file": "{own_file}", "suffix": "v"}, "checkpoint"),
    ("POST", "/v1/fine_tuning/jobs", {"model": "tiny", "training_file": "{own_file}", "prefix": "{id}"}, "name"),
    ("GET", "/v1/fine_tuning/jobs/{id}", None, "job"),
    ("POST", "/v1/fine_tuning/jobs/{id}/cancel", None, "job"),
    ("GET", "/v1/fine_tuning/jobs/{id}/events", None, "job"),
    ("GET", "/v1/fine_tuning/jobs/{id}/checkpoints", None, "job"),
    ("GET", "/v1/fine_tuning/jobs?after={id}", None, "job"),
    ("GET", "/v1/prefixes?after={id}", None, "name"),
    ("GET", "/v1/usage?user={id}", None, "user"),
]  # fmt: skip
BY_TENANT = [
    ("GET", "/v1/users/{id}", None, "user"),
    ("DELETE", "/v1/users/{id}", None, "user"),
    ("POST", "/v1/keys", {"user": "{id}"}, "user"),
    ("DELETE", "/v1/keys/{id}", None, "key"),
    ("GET", "/v1/erasures/{id}", None, "erasure"),
    ("DELETE", "/v1/tasks/{id}", None, "task"),
    *BY_USER,
]
ABSENT = {
    "name": "nobody:voice",
    "version": "nobody:voice@1",
    "checkpoint": "nobody:voice@ftjob-0000000000000000000000",
    "file": "file-0000000000000000000000",
    "job": "ftjob-0000000000000000000000",
    "user": "nobody",
    "key": "000000000000",
    "erasure": "era-0000000000000000000000",
    "task": "nothing",
}


def filled(service, tenant, user_name):
    """A user with one of everything, and the ids of it."""
    user = service.user(tenant, user_name)
    file = service.upload(user).json()["id"]
    service.publish(tenant.scope, user_name, "voice", files=[file])
    service.publish(tenant.scope, user_name, "voice", files=[file], seed=1)
    service.user(tenant, "to-go")
    erased = tenant.delete("/v1/users/to-go").json()
    task_file = service.upload(tenant, task=f"task-of-{user_name}").json()["id"]
    service.publish(tenant.scope, f"task:task-of-{user_name}", f"task-of-{user_name}", files=[task_file])
    assert erased["deleted"]
    return user, {
        "name": f"{user_name}:voice",
        "version": f"{user_name}:voice@1",
        "file": file,
        "user": user_name,
        "key": tenant.get("/v1/keys").json()["data"][-1]["id"],
        "erasure": _erasure_of(service, tenant),
        "task": f"task-of-{user_name}",
    }


def _erasure_of(service, tenant):
    """The id of the tenant's erasure: it stands in the answer only when it took long."""
    begun = service.store.owners.create_user(tenant.scope, "to-go-too")
    return service.store.erasure.begin(tenant.scope, begun.label).id


def asked(client, method, path, body, value, own_file):
    def put(text):
        return text.replace("{id}", value).replace("{own_file}", own_file)

    filled_in = (
        {k: put(v) if isinstance(v, str) else v for k, v in body.items()} if body is not None else None
    )
    return client.request(method, put(path), json=filled_in)


def masked(response, value):
    """Everything of an answer that may not differ."""
    text = response.text
    around = (f"task:{value}", f"alice:voice@{value}")
    for part in (value, value.split("@")[0], value.split(":")[0], *around):
        text = text.replace(f"'{part}'", "<id>")
    headers = {
        k: v
        for k, v in response.headers.items()
        if k not in {"date", "x-request-id", "openai-processing-ms", "content-length"}
    }
    return response.status_code, text, headers


@pytest.fixture(scope="module")
def world(service):
    """alice and bob of one tenant, carol of another; and a file of alice's tenant to train from."""
    acme, globex = service.tenant(), service.tenant()
    alice, of_alice = filled(service, acme, "alice")
    bob, of_bob = filled(service, acme, "bob")
    carol, of_carol = filled(service, globex, "carol")
    for user, of in ((alice, of_alice), (bob, of_bob), (carol, of_carol)):  # now that no worker comes
        body = {"model": "tiny", "training_file": of["file"], "suffix": "voice"}
        of["job"] = user.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        service.keep(service.store.jobs.claim("worker"), 1)
        of["checkpoint"] = f"{of['name']}@{of['job']}"
        assert complete(user, of["checkpoint"]).status_code == 200
    return {
        "alice": alice,
        "acme": acme,
        "globex": globex,
        "own": of_alice,
        "other user": of_bob,
        "other tenant": of_carol,
    }


@pytest.mark.parametrize("whose", ["other user", "other tenant"])
@pytest.mark.parametrize(("method", "path", "body", "kind"), BY_USER)
def test_a_users_key_cannot_tell_foreign_from_absent(world, whose, method, path, body, kind):
    own_file = world["own"]["file"]
    foreign, absent = world[whose][kind], ABSENT[kind]
    got = asked(world["alice"], method, path, body, foreign, own_file)
    never = asked(world["alice"], method, path, body, absent, own_file)
    assert got.status_code == 404
    assert masked(got, foreign) == masked(never, absent)


@pytest.mark.parametrize(("method", "path", "body", "kind"), BY_TENANT)
def test_a_tenants_key_cannot_tell_foreign_from_absent(world, method, path, body, kind):
    if body is not None and "suffix" in body:
        body = {k: v for k, v in body.items() if k != "suffix"} | {"prefix": "alice:other"}
    own_file = world["own"]["file"]
    foreign, absent = world["other tenant"][kind], ABSENT[kind]
    got = asked(world["acme"], method, path, body, foreign, own_file)
    never = asked(world["acme"], method, path, body, absent, own_file)
    assert got.status_code == 404
    assert masked(got, foreign) == masked(never, absent)


LOOKS = [row for row in BY_USER if row[0] == "GET" and "?" not in row[1]]


@pytest.mark.parametrize(("method", "path", "body", "kind"), LOOKS)
def test_what_belongs_to_others_still_stands_after_all_that_was_tried(world, method, path, body, kind):
    for whose, client in (("other user", "acme"), ("other tenant", "globex")):
        answer = asked(world[client], method, path, body, world[whose][kind], world["own"]["file"])
        assert answer.status_code == 200


def test_lists_hold_what_is_ones_own_alone(world):
    alice, acme = world["alice"], world["acme"]
    names = [model["id"] for model in alice.get("/v1/models").json()["data"]]
    assert names == ["tiny", "task:task-of-alice", "task:task-of-bob", "alice:voice"] or set(names) == {
        "tiny",
        "alice:voice",
        "task:task-of-alice",
        "task:task-of-bob",
    }
    assert {f["user"] for f in alice.get("/v1/files").json()["data"]} == {"alice"}
    assert {j["prefix"] for j in alice.get("/v1/fine_tuning/jobs?limit=100").json()["data"]} == {
        "alice:voice"
    }
    for path in ("/v1/files", "/v1/fine_tuning/jobs?limit=1000", "/v1/prefixes", "/v1/models", "/v1/users"):
        assert "carol" not in acme.get(path).text


USERS_ONLY_SEES = [
    ("GET", "/v1/users"),
    ("POST", "/v1/users"),
    ("GET", "/v1/users/{}"),
    ("DELETE", "/v1/users/{}"),
    ("GET", "/v1/keys"),
    ("POST", "/v1/keys"),
    ("DELETE", "/v1/keys/{}"),
    ("GET", "/v1/erasures/{}"),
    ("GET", "/v1/tasks"),
    ("DELETE", "/v1/tasks/{}"),
    ("GET", "/v1/tenants"),
    ("POST", "/v1/tenants"),
    ("DELETE", "/v1/tenants/{}"),
]


@pytest.mark.parametrize(("method", "path"), USERS_ONLY_SEES)
def test_a_users_key_is_refused_alike_for_every_id(world, method, path):
    bodies = {"/v1/users": {"id": "x"}, "/v1/keys": {}, "/v1/tenants": {"name": "x"}}
    answers = [
        world["alice"].request(method, path.format(name), json=bodies.get(path))
        for name in ("alice", "bob", "carol", "nobody")
    ]
    assert {a.status_code for a in answers} == {403}
    assert len({a.text for a in answers}) == 1


def test_a_task_is_read_by_its_tenants_users_and_changed_by_none(world):
    alice = world["alice"]
    name = "task:task-of-bob"
    assert complete(alice, name).status_code == 200
    assert alice.get(f"/v1/models/{name}").status_code == 200
    for refused in (
        alice.delete(f"/v1/models/{name}"),
        alice.post(f"/v1/prefixes/{name}/promote", json={"version": 1}),
        alice.post(f"/v1/prefixes/{name}/rollback"),
    ):
        assert refused.status_code == 404


def test_openais_user_field_selects_nobody(world):
    alice, acme = world["alice"], world["acme"]
    for client in (alice, acme):
        plain = complete(client, "alice:voice").json()["choices"]
        assert complete(client, "alice:voice", user="bob").json()["choices"] == plain
    assert complete(alice, "bob:voice", user="bob").status_code == 404


def test_a_job_never_takes_a_file_of_another_owner(world):
    acme = world["acme"]
    body = {"model": "tiny", "training_file": world["other user"]["file"], "prefix": "alice:voice"}
    refused = acme.post("/v1/fine_tuning/jobs", json=body)
    assert refused.status_code == 400
    assert "file" in error_of(refused)["param"]


def test_the_admin_key_reaches_no_owned_data(world, service):
    with service.client(ADMIN_KEY) as admin:
        for path in ("/v1/models", "/v1/files", "/v1/users", "/v1/keys", "/v1/prefixes", "/v1/usage"):
            assert admin.get(path).status_code == 403
        assert complete(admin, "alice:voice").status_code == 403


@pytest.mark.parametrize("token", ["", "x", "pfx_live_" + "a" * 63, "Bearer", "\u00e9", ADMIN_KEY + "x"])
def test_a_bad_key_is_401_on_every_route_before_anything_else(service, token):
    with service.client(None) as nobody:
        headers = {"Authorization": f"Bearer {token}".encode("latin-1")} if token else {}
        for method, path in (
            ("GET", "/v1/models"),
            ("POST", "/v1/completions"),
            ("POST", "/v1/files"),
            ("GET", "/no/such/route"),
            ("DELETE", "/v1/users/alice"),
        ):
            refused = nobody.request(method, path, headers=headers)
            assert refused.status_code == 401
            assert error_of(refused)["code"] == "invalid_api_key"


def test_every_route_is_tried_by_this_suite(service):
    """A route that is added must be added here: those with an id to the tables, the others below."""
    document = service.client(None).get("/openapi.json").json()
    tried = {(m, re.sub(r"\{.*?\}", "{}", p.split("?")[0])) for m, p, _, _ in BY_TENANT}
    tried |= set(USERS_ONLY_SEES)
    plain = {
        ("GET", "/v1/models"),
        ("POST", "/v1/files"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/v1/files"),
        ("GET", "/v1/fine_tuning/jobs"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/prefixes"),
    }
    routes = {
        (method.upper(), re.sub(r"\{.*?\}", "{}", path))
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert routes - tried - plain == set()
