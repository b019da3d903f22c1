"""The service by its own OpenAPI document: scenarios of calls whose ids flow from answers into later calls.

A tenant does whatever the document allows, another asks beforehand for each thing of the first by its id: never a 5xx,
never an answer that the document does not describe, never a difference between foreign and absent. The same
scenarios at each run; PREFIX_TEST_SCENARIOS=500 tries more.
"""

import hashlib
import json
import os
import re

import schemathesis
from hypothesis import HealthCheck, Phase, seed, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ensure_resource_availability,
    response_schema_conformance,
    status_code_conformance,
    use_after_free,
)
from service_making import ADMIN_KEY
from store_making import rows

from prefix_engine.testing import random_prefix
from prefix_store.errors import LeaseLost

SCENARIOS = int(os.environ.get("PREFIX_TEST_SCENARIOS", "12"))
CONFORMANCE = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
CHECKS = [*CONFORMANCE, use_after_free, ensure_resource_availability]
CANARY = "wryneck"  # in whatever the first tenant writes that is text
IDS = {"id", "prefix", "fine_tuned_model", "fine_tuned_model_checkpoint", "erasure", "prefix_version"}
LISTS = ("users", "tasks", "keys", "files", "fine_tuning/jobs", "prefixes", "models")
OWNED = ("users", "files", "fine_tuning/jobs", "prefixes")
PASSING = {"date", "x-request-id", "openai-processing-ms", "content-length"}
REACHED = {  # with success, or the scenarios are none
    "POST /v1/users",
    "GET /v1/users/{user_id}",
    "DELETE /v1/users/{user_id}",
    "POST /v1/keys",
    "POST /v1/files",
    "GET /v1/files/{file_id}/content",
    "DELETE /v1/files/{file_id}",
    "POST /v1/fine_tuning/jobs",
    "GET /v1/fine_tuning/jobs/{job_id}",
    "GET /v1/usage",
}
EACH = 2  # scenarios of a seed: the simplest that there is, and another
AS_GENERATED = 4  # one body in so many is left as the document alone made it


def ids_in(answer):
    """Every name and id that an answer tells."""
    if isinstance(answer, list):
        return {found for part in answer for found in ids_in(part)}
    if not isinstance(answer, dict):
        return set()
    own = {value for name, value in answer.items() if name in IDS and isinstance(value, str)}
    return own | {found for part in answer.values() for found in ids_in(part)}


def absent(known):
    """A name or id of the same form that nobody has."""
    digest = hashlib.sha256(known.encode()).hexdigest()
    kind = re.match(r"(file|ftjob|era|ckpt|ftevent)-", known)
    if kind:
        return kind[0] + digest[: len(known) - len(kind[0])]
    owner, *rest = re.split(r"(?=[:@])", known)
    return "".join((digest[:12], *rest)) if owner != "task" else f"task:{digest[:12]}"


def swapped(value, names):
    """`value` with every string that is a key of `names` replaced."""
    if isinstance(value, dict):
        return {key: swapped(part, names) for key, part in value.items()}
    if isinstance(value, list):
        return [swapped(part, names) for part in value]
    return names.get(value, value) if isinstance(value, str) else value


def masked(response, names):
    """Everything of an answer that may not differ between foreign and absent."""
    text = response.text
    for name in sorted(names, key=len, reverse=True):
        text = text.replace(f"'{name}'", "<id>").replace(f"'task:{name}'", "<id>")
    headers = {k: v for k, v in response.headers.items() if k not in PASSING}
    return response.status_code, text, headers


def with_names(case, names):
    """The same call once more, with other names; and with its caller's key, which a case may have left out."""
    return case.operation.Case(
        path_parameters=swapped(case.path_parameters, names),
        query=swapped(case.query, names),
        headers=case.headers,
        body=swapped(case.body, names),
        media_type=case.media_type,
    )


class Scenario:
    """Two tenants, what the first has got, and a worker that takes its jobs."""

    def __init__(self, service):
        self.service = service
        self.first, self.second = service.tenant(), service.tenant()
        service.user(self.second, "second-tenants-own")
        file = service.upload(self.second, user="second-tenants-own").json()["id"]
        service.publish(self.second.scope, "second-tenants-own", "voice", files=[file])
        self.names = {}
        self.made = self.jobs = 0
        self.held = []  # claims of jobs that go on

    def fit(self, case):
        """Make a body that the document allows one that the service can use; most of the time."""
        self.made += 1
        case.headers.pop("x-deadline-seconds", None)  # or 503 would be right
        if self.made % AS_GENERATED == 0:
            return
        if case.operation.label == "POST /v1/files" and isinstance(case.body, dict):
            data = rows((f"{CANARY} says", f"a {CANARY} {self.made}"))
            owner = {"user": case.body["user"]} if case.body.get("user") in self.names else {"task": "lore"}
            case.body = {"purpose": "fine-tune", **owner, "file": data}
        if case.operation.label == "POST /v1/fine_tuning/jobs" and isinstance(case.body, dict):
            name = case.body.get("training_file")
            file = self.first.get(f"/v1/files/{name}").json() if str(name) in self.names else {}
            target = f"task:{file['task']}" if file.get("task") else f"{file.get('user')}:voice"
            wanted = {"model": self.service.base.name, "prefix": target, "metadata": {"about": CANARY}}
            case.body = {"training_file": name, **wanted}
        if case.operation.label == "POST /v1/prefixes/{name}/promote":
            case.body = {"version": 1}
        if case.operation.label == "POST /v1/completions" and isinstance(case.body, dict):
            case.body = {"model": case.body.get("model"), "prompt": f"a {CANARY} is", "max_tokens": 3}
            case.body |= {"stream": True} if self.made % 2 else {"logprobs": 2, "echo": True, "n": 2}

    def heard(self, case, response):
        """Learn the ids of an answer, and do what a worker does with a job that came of it."""
        if response.status_code != 200 or "json" not in response.headers["content-type"][0]:
            return
        told = json.loads(response.content)
        found = ids_in(told) - {self.service.base.name}
        self.names |= {name: absent(name) for name in found}
        if case.operation.label != "POST /v1/fine_tuning/jobs":
            return
        claim = self.service.store.jobs.claim("worker")
        if claim is None:  # the answer to an idempotency key that came before
            return
        assert claim.job_id == told["id"]
        self.jobs += 1
        if self.jobs % 2:
            prefix = random_prefix(self.service.base, 4, seed=self.jobs)
            self.service.complete(claim, prefix, promote=self.jobs % 4 == 1)
        else:  # it goes on, and holds what it learns from
            self.service.keep(claim, 1)
            self.held.append(claim)

    def let_go(self):
        """Leave no lease: what erasures wait for is asked for again and again."""
        for claim in self.held:
            try:
                self.service.store.jobs.fail(claim, "ended", "the scenario is over")
            except LeaseLost:
                self.service.store.jobs.cancelled(claim)

    def ask_as_second(self, case):
        """The second tenant makes the same call; it learns nothing and changes nothing."""
        if case.operation.label == "POST /v1/users":  # a name is free in each tenant
            return
        parts = [case.path_parameters, case.query, case.body if isinstance(case.body, dict) else {}]
        foreign = {name for name in self.names if any(swapped(part, {name: 0}) != part for part in parts)}
        if not foreign:
            if case.method == "GET":
                answer = send(with_names(case, {}), self.second)
                assert CANARY not in answer.text or CANARY in str(parts)
                assert not [name for name in self.names if f'"{name}"' in answer.text]
            return
        before = self.owned() if case.method != "GET" else None
        got, never = (send(with_names(case, names), self.second) for names in ({}, self.names))
        assert masked(got, foreign) == masked(never, {self.names[name] for name in foreign})
        assert got.status_code >= 400
        assert CANARY not in got.text
        assert before is None or self.owned() == before

    def owned(self):
        """All that the first tenant can list."""
        return [self.first.get(f"/v1/{kind}").text for kind in OWNED]


def send(case, client):
    return case.call(headers={"Authorization": f"Bearer {client.key}"})


class Story:
    """How the steps of a scenario are taken; mixed into the machine that schemathesis makes of the document."""

    service = whole = calls = None

    def setup(self):
        self.scenario = Scenario(self.service)

    def before_call(self, case):
        self.scenario.fit(case)

    def call(self, case, **_):
        self.scenario.ask_as_second(case)
        return send(case, self.scenario.first)

    def after_call(self, response, case):
        super().after_call(response, case)
        self.scenario.heard(case, response)
        which = (case.operation.label, response.status_code)
        self.calls[which] = self.calls.get(which, 0) + 1
        if case.method == "DELETE" and response.status_code in {200, 202}:
            erasure = json.loads(response.content).get("erasure")
            if erasure is not None:
                self.look_beside("/v1/erasures/{erasure_id}", erasure_id=erasure)

    def validate_response(self, response, case, **_):
        case.validate_response(response, checks=CHECKS, recorder=self.recorder)

    def look_beside(self, path, **names):
        """One more look that belongs to no scenario, by both tenants."""
        case = self.whole[path]["GET"].Case(path_parameters=names)
        self.scenario.ask_as_second(case)
        case.validate_response(send(case, self.scenario.first), checks=CONFORMANCE)

    def teardown(self):
        try:
            for kind in LISTS:
                self.look_beside(f"/v1/{kind}")
        finally:
            self.scenario.let_go()


def machine(service, calls):
    """Scenarios over the running service's document; counts answers by operation and status in `calls`."""
    whole = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    # An erasure has an id only if it takes long, so it is asked for beside the scenarios, which must be repeatable.
    schema = whole.exclude(path_regex="^/v1/tenants|^/v1/erasures|^/livez|^/readyz")
    # The document's own links alone: what would be guessed besides picks from lists, whose order ids decide by chance.
    schema.config.phases.stateful.inference.algorithms.clear()
    parts = {"service": service, "whole": whole, "calls": calls}
    return type("Scenarios", (Story, schema.as_state_machine()), parts)


def test_no_scenario_of_the_document_breaks_it_or_shows_what_is_anothers(service):
    calls = {}
    scenarios = machine(service, calls)
    chosen = settings(
        max_examples=EACH,
        stateful_step_count=24,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    # Each seed alone: hypothesis takes an answer that differs by time, as under load, for a fault of its own.
    for number in range(SCENARIOS):
        seed(number)(scenarios)
        scenarios.run(settings=chosen)
    print(json.dumps({f"{label} {status}": n for (label, status), n in sorted(calls.items())}, indent=1))
    answered = {label for label, status in calls if status == 200}
    assert answered >= REACHED


def test_tenants_are_made_listed_and_erased_as_the_document_says(service):
    schema = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    tenants = schema["/v1/tenants"]

    def asked(operation, key=ADMIN_KEY, **parts):
        case = operation.Case(**parts)
        answer = case.call(headers={"Authorization": f"Bearer {key}"})
        case.validate_response(answer, checks=CONFORMANCE)
        return answer.status_code, json.loads(answer.content)

    body = {"name": "stateful", "limits": {"max_jobs": 2, "requests_per_minute": 9}}
    status, made = asked(tenants["POST"], body=body)
    assert status == 200
    assert asked(tenants["POST"], body=body)[0] == 409
    assert asked(tenants["POST"], made["api_key"], body=body)[0] == 403
    assert made["id"] in {known["id"] for known in asked(tenants["GET"])[1]["data"]}
    one = schema["/v1/tenants/{tenant_id}"]["DELETE"]
    status, gone = asked(one, path_parameters={"tenant_id": made["id"]})
    assert (status, gone["deleted"], gone["purge"]) == (200, True, "done")
    assert asked(one, path_parameters={"tenant_id": made["id"]})[0] == 404
    assert asked(schema["/v1/users"]["GET"], made["api_key"])[0] == 401
    for path in ("/livez", "/readyz"):
        assert asked(schema[path]["GET"]) == (200, {"status": "ok"})
