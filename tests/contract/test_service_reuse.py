"""Whose prompts are reused over the wire, and that nothing is left of them when their owner goes."""

import pytest
from service_making import complete, events, serving

PROMPT = "tell me about the eagle, " * 4  # 100 tokens of the tiny base, and pages of 16


@pytest.fixture
def acme(own_service):
    """A tenant with two users, a prefix of each, and a task's prefix that both may use."""
    tenant = own_service.tenant()
    tenant.alice, tenant.bob = (own_service.user(tenant, name) for name in ("alice", "bob"))
    furnish(own_service, tenant)
    return tenant


def furnish(service, tenant):
    for name in ("alice", "bob"):
        service.publish(tenant.scope, name, "voice")
    made = service.upload(tenant, task="shared").json()["id"]
    service.publish(tenant.scope, "task:shared", "shared", files=[made])


def cached(client, model, prompt=PROMPT, **body):
    answer = complete(client, model, prompt, **body)
    assert answer.status_code == 200, answer.text
    usage = answer.json()["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["prompt_tokens_details"]["cached_tokens"]


def left(service):
    """Pages of texts that are kept, and whether all pages of texts are zero."""
    engine = service.parts.engine
    assert engine.stats().running == 0
    memory = engine._loop.memory
    zero = not bool(memory.content[: 1 + memory.row_pages.total].any())
    return engine.stats().pages_cached, zero


def test_a_repeated_prompt_is_told_in_the_usage_whole_and_streamed(own_service, acme):
    first = complete(acme.alice, "alice:voice", PROMPT).json()
    second = complete(acme.alice, "alice:voice", PROMPT).json()
    assert second["choices"] == first["choices"]
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert second["usage"]["prompt_tokens_details"] == {"cached_tokens": 96}
    assert second["usage"]["prompt_tokens"] == 101
    asked = {"model": "alice:voice", "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
    told = acme.alice.post("/v1/completions", json=asked | {"stream_options": {"include_usage": True}})
    assert list(events(told.text.splitlines()))[-1]["usage"] == second["usage"]


def test_tokens_of_several_rows_of_one_prompt_count_once(acme):
    assert cached(acme.alice, "tiny", n=3, temperature=1) == 0
    assert cached(acme.alice, "tiny", n=3, temperature=1) == 96
    assert cached(acme.alice, "tiny", [PROMPT, PROMPT, "short"]) == 2 * 96


@pytest.mark.parametrize("model", ["tiny", "task:shared"])
def test_users_of_one_model_never_find_each_others_prompts(acme, model):
    assert [cached(client, model) for client in (acme.alice, acme.bob, acme)] == [0, 0, 0]
    assert [cached(client, model) for client in (acme.alice, acme.bob, acme)] == [96, 96, 96]


def test_a_tenant_and_its_user_find_nothing_of_each_other_on_the_users_own_prefix(acme):
    assert cached(acme, "alice:voice") == cached(acme.alice, "alice:voice") == 0


def test_two_tenants_and_two_keys_of_one_tenant_find_nothing_of_each_other(own_service, acme):
    other = own_service.tenant()
    second = own_service.client(acme.post("/v1/keys", json={}).json()["api_key"])
    assert [cached(client, "tiny") for client in (acme, other, second)] == [0, 0, 0]
    assert [cached(client, "tiny") for client in (acme, other, second)] == [96, 96, 96]


def test_a_second_key_of_a_user_is_the_same_person(own_service, acme):
    again = own_service.user(acme, "alice")
    assert cached(acme.alice, "tiny") == 0
    assert cached(again, "tiny") == 96


def test_the_field_user_narrows_and_never_widens(acme):
    assert cached(acme, "tiny", user="carol") == 0
    assert cached(acme, "tiny", user="dave") == 0
    assert cached(acme, "tiny") == 0
    assert cached(acme, "tiny", user="carol") == 96
    for pretended in ("alice", acme.alice.scope.user.owner_id, f"user {acme.alice.scope.user.owner_id}"):
        cached(acme.alice, "tiny")
        assert cached(acme, "tiny", user=pretended) == cached(acme.bob, "tiny", user=pretended) == 0


def test_nothing_of_an_erased_user_is_left_on_the_base_or_a_shared_prefix(own_service, acme):
    for model in ("tiny", "task:shared", "alice:voice"):
        cached(acme.alice, model)
        cached(acme, model, user="alice")  # the tenant's own application may have sent it
    cached(acme.bob, "task:shared")
    assert acme.delete("/v1/users/alice").status_code == 200
    pages, _ = left(own_service)
    assert pages == 6
    assert cached(acme, "task:shared", user="alice") == 0
    assert cached(acme, "tiny", user="alice") == 0
    assert cached(acme.bob, "task:shared") == 96
    assert acme.delete("/v1/users/bob").status_code == 200
    assert left(own_service) == (0, True)


def test_a_tenants_key_finds_its_prompts_again_after_an_erasure(acme):
    assert acme.delete("/v1/users/bob").status_code == 200
    assert [cached(acme, "tiny"), cached(acme, "tiny")] == [0, 96]


def test_nothing_is_left_of_what_was_asked_of_a_deleted_prefix(own_service, acme):
    for client in (acme.alice, acme.bob, acme):
        cached(client, "task:shared")
    assert left(own_service)[0] > 0
    assert acme.delete("/v1/tasks/shared").status_code == 200
    assert left(own_service) == (0, True)


def test_nothing_is_left_of_an_erased_tenant(own_service, acme):
    for client in (acme.alice, acme.bob, acme):
        for model in ("tiny", "task:shared"):
            cached(client, model)
    other = own_service.tenant()
    cached(other, "tiny")
    with own_service.client("an-admin-key-for-tests") as admin:
        assert admin.delete(f"/v1/tenants/{acme.tenant_id}").status_code == 200
    assert left(own_service)[0] == 6
    assert cached(other, "tiny") == 96


def test_an_erasure_by_one_process_empties_the_others(tmp_path, database_url):
    with serving(tmp_path, database_url) as one, serving(tmp_path, database_url) as two:
        acme = one.tenant()
        key = one.user(acme, "alice").key
        one.user(acme, "bob")
        furnish(one, acme)
        with two.client(key) as alice, two.client(acme.key) as tenant:
            for model in ("tiny", "task:shared"):
                cached(alice, model)
                cached(tenant, model)
            assert left(two)[0] > 0
            assert acme.delete("/v1/users/alice").status_code == 200
            assert left(two) == (0, True)


def test_reuse_can_be_switched_off_and_is_measured(tmp_path, database_url):
    with serving(tmp_path, database_url, prompt_cache_seconds=0) as service:
        acme = service.tenant()
        assert cached(acme, "tiny") == cached(acme, "tiny") == 0
        assert left(service) == (0, True)
        names = {metric.name for metric in service.parts.telemetry.registry.collect()}
    assert {"prefix_engine_pages_cached", "prefix_engine_prompt_cache_tokens"} <= names
