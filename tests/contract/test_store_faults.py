"""What failpoints have found, each by itself: a fault costs a try, and nothing is charged, kept or blamed twice."""

import time

import pytest
from service_making import complete as generate
from service_making import error_of
from store_making import complete, files_on_disk, publish, queue, rows
from waiting import wait_until

from prefix_store.errors import Conflict, NotFound, Unavailable
from prefix_store.failpoints import arm
from prefix_store.usage import Receipt
from service.meter import Meter


@pytest.fixture(autouse=True)
def disarmed():
    yield
    arm("")


def used(store, tenant):
    return [(day.requests, day.prompt_tokens, day.completion_tokens) for day in store.usage.report(tenant)]


def test_a_count_whose_commit_was_in_doubt_is_not_charged_again(store, tenant, alice):
    arm("database.after_commit=raise")
    with pytest.raises(Unavailable):
        store.usage.record(tenant, alice, 5, 7, receipt=Receipt("one", 1))
    for writer, number in (("one", 1), ("one", 2), ("one", 2), ("two", 2)):
        store.usage.record(tenant, alice, 5, 7, receipt=Receipt(writer, number))
    assert used(store, tenant) == [(3, 15, 21)]


def test_a_count_that_was_written_before_its_user_was_erased_is_not_charged_to_the_tenant_too(
    store, tenant, alice
):
    store.usage.record(tenant, alice, 5, 7, receipt=Receipt("one", 1))
    store.erasure.purge(store.erasure.begin(tenant, "alice").id)
    store.usage.record(tenant, alice, 5, 7, receipt=Receipt("one", 1))
    assert used(store, tenant) == [(1, 5, 7)]
    store.usage.record(tenant, alice, 1, 1, receipt=Receipt("one", 2))
    assert used(store, tenant) == [(2, 6, 8)]


@pytest.mark.parametrize("point", ["database.before_commit", "database.after_commit", "service.usage_taken"])
def test_the_meter_writes_again_what_failed_and_then_what_came_meanwhile(store, tenant, alice, point):
    meter = Meter(store.scoped)
    meter.add(tenant, alice, 5, 7)
    arm(f"{point}=raise")
    meter.flush()
    assert meter.pending(tenant.tenant_id) == 12
    meter.add(tenant, alice, 1, 1)
    meter.add(tenant, None, 2, 2)
    assert meter.pending(tenant.tenant_id) == 18
    meter.flush()
    assert meter.pending(tenant.tenant_id) == 0
    assert sorted(used(store, tenant)) == [(1, 2, 2), (2, 6, 8)]


def test_a_version_goes_with_the_result_file_that_could_not_be_written(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    before = files_on_disk(store)
    arm("publish.after_seal=raise")
    with pytest.raises(Unavailable):
        complete(store, claim)
    assert files_on_disk(store) == before
    assert complete(store, claim).full_name == "alice:voice@1"


def test_a_disk_that_fails_is_away_and_leaves_nothing(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    before = files_on_disk(store)
    arm("draft.before_seal=raise")
    with pytest.raises(Unavailable, match="files cannot be written now"):
        complete(store, claim)
    assert files_on_disk(store) == before
    assert complete(store, claim).full_name == "alice:voice@2"


def test_an_upload_to_a_disk_that_fails_is_to_be_sent_again(own_service):
    acme = own_service.tenant()
    alice = own_service.user(acme, "alice")
    arm("draft.before_seal=raise")
    refused = own_service.upload(alice, rows(("a", "b")))
    assert refused.status_code == 503
    assert error_of(refused)["code"] == "overloaded"
    assert "retry-after" in refused.headers
    assert own_service.upload(alice, rows(("a", "b"))).status_code == 200
    assert generate(alice, own_service.base.name).status_code == 200


def test_a_rollback_whose_answer_was_lost_goes_back_once(store, tenant, alice):
    for _ in range(3):
        publish(store, tenant, alice, "voice")
    arm("database.after_commit=raise")
    with pytest.raises(Unavailable):
        store.registry.rollback(tenant, "alice:voice", "key")
    assert store.registry.rollback(tenant, "alice:voice", "key").number == 2
    assert store.registry.resolve(tenant, "alice:voice").number == 2
    with pytest.raises(Conflict, match="used for another request"):
        queue(store, tenant, alice, "voice", idempotency_key="key")
    assert store.registry.rollback(tenant, "alice:voice", "another").number == 1
    store.registry.delete_version(tenant, "alice:voice", 2)
    with pytest.raises(NotFound, match="the version that it went back to is gone"):
        store.registry.rollback(tenant, "alice:voice", "key")


def test_a_rollback_that_is_sent_again_with_its_key_goes_back_once(own_service):
    acme = own_service.tenant()
    own_service.user(acme, "alice")
    for seed in range(3):
        own_service.publish(acme.scope, "alice", "voice", seed=seed)
    for key, live in (("one", 2), ("one", 2), ("two", 1), ("two", 1)):
        answer = acme.post("/v1/prefixes/alice:voice/rollback", headers={"Idempotency-Key": key})
        assert (answer.status_code, answer.json()["live_version"]) == (200, live)


def test_upkeep_leaves_a_young_erasure_to_who_began_it_and_paces_one_that_fails(
    store, tenant, alice, monkeypatch
):
    bob = store.owners.create_user(tenant, "bob")
    for owner in (alice, bob):
        publish(store, tenant, owner, "voice")
    first, second = (store.erasure.begin(tenant, name) for name in ("alice", "bob"))
    store.erasure.go_on()
    assert store.erasure.pending() == [first.id, second.id]
    monkeypatch.setattr("prefix_store.unfinished.YOUNG_SECONDS", 0.0)
    arm("erase.after_files=raise")  # of the first: the disk
    began = time.monotonic()  # before the pause begins, which the other's scrub may use up
    store.erasure.go_on()
    assert store.erasure.pending() == [first.id]
    wait_until(lambda: store.erasure.go_on() or not store.erasure.pending())
    assert time.monotonic() - began >= 2  # it waited for its turn
    assert files_on_disk(store) == set()
