"""The store's main promises, each on SQLite and PostgreSQL."""

import contextlib

import pytest
from database_making import everything
from production_making import damage, sealed
from store_making import complete, files_on_disk, lapse, publish, queue, rows, upload, user_scope

from prefix_store import open_store
from prefix_store.errors import (
    Conflict,
    Corrupt,
    Invalid,
    LeaseLost,
    NoLiveVersion,
    NotFound,
    Quota,
    Tampered,
)
from prefix_store.scope import Admin


def test_published_version_is_resolved_and_read_back(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    done = publish(store, tenant, alice, "voice", b"the bytes")
    assert (done.full_name, done.promoted) == ("alice:voice@1", True)
    version = store.registry.resolve(tenant, "alice:voice")
    assert version.full_name == "alice:voice@1"
    assert store.registry.read(version) == b"the bytes"


def test_unpromoted_version_keeps_the_old_one_live_and_a_first_candidate_waits(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    publish(store, tenant, alice, "voice", promote=False)
    with pytest.raises(NoLiveVersion):
        store.registry.resolve(tenant, "alice:voice")
    publish(store, tenant, alice, "voice")
    publish(store, tenant, alice, "voice", promote=False)
    assert store.registry.resolve(tenant, "alice:voice").number == 2
    assert store.registry.resolve(tenant, "alice:voice@3").number == 3
    assert store.registry.promote(tenant, "alice:voice", 3).live
    assert store.registry.rollback(tenant, "alice:voice").number == 2
    with pytest.raises(Conflict):
        store.registry.rollback(tenant, "alice:voice")


def test_numbers_are_never_used_again(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    publish(store, tenant, alice, "voice")
    publish(store, tenant, alice, "voice", promote=False)
    store.registry.delete_version(tenant, "alice:voice", 2)
    assert publish(store, tenant, alice, "voice").full_name == "alice:voice@3"


def test_live_version_is_not_deleted_alone(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    publish(store, tenant, alice, "voice")
    with pytest.raises(Conflict):
        store.registry.delete_version(tenant, "alice:voice", 1)
    store.registry.delete_prefix(tenant, "alice:voice")
    with pytest.raises(NotFound):
        store.registry.resolve(tenant, "alice:voice")
    assert not [place for place in files_on_disk(store) if place.object_id.startswith("ver")]


def test_a_users_key_sees_nothing_of_others(store, tenant, other_tenant):
    alice, bob = store.owners.create_user(tenant, "alice"), store.owners.create_user(tenant, "bob")
    file = upload(store, tenant, alice)
    publish(store, tenant, alice, "voice", files=[file.id])
    job = queue(store, tenant, alice, "voice", [file.id])
    for scope in (user_scope(store, tenant, "bob"), other_tenant):
        for call in (
            lambda s: store.registry.resolve(s, "alice:voice"),
            lambda s: store.registry.delete_prefix(s, "alice:voice"),
            lambda s: store.registry.promote(s, "alice:voice", 1),
            lambda s: store.datasets.get(s, file.id),
            lambda s: store.datasets.read(s, file.id),
            lambda s: store.datasets.delete(s, file.id),
            lambda s: store.jobs.get(s, job.id),
            lambda s: store.jobs.cancel(s, job.id),
            lambda s: store.jobs.events(s, job.id),
            lambda s: store.erasure.begin(s, "alice"),
            lambda s: store.datasets.writer(s, alice, "x"),
            lambda s: queue(store, s, bob if s.user else alice, "voice", [file.id]),
        ):
            with pytest.raises(NotFound):
                call(scope)
        assert store.registry.list(scope) == []
        assert store.datasets.list(scope) == []
        assert store.jobs.list(scope) == []


def test_a_users_job_takes_only_its_own_files_and_a_tasks_job_names_its_contributors(store, tenant):
    alice, bob = store.owners.create_user(tenant, "alice"), store.owners.create_user(tenant, "bob")
    task = store.owners.ensure_task(tenant, "e2e")
    a, b = upload(store, tenant, alice), upload(store, tenant, bob)
    with pytest.raises(Invalid):
        queue(store, tenant, bob, "voice", [a.id])
    publish(store, tenant, task, "e2e", files=[upload(store, tenant, task).id])
    publish(store, tenant, task, "e2e", files=[a.id, b.id])
    key = user_scope(store, tenant, "bob")
    assert store.registry.resolve(key, "task:e2e").number == 2
    store.erasure.begin(tenant, "alice")
    assert store.registry.resolve(tenant, "task:e2e").number == 1  # back to the newest untouched one
    with pytest.raises(NotFound):
        store.registry.resolve(tenant, "task:e2e@2")


def test_a_stale_worker_publishes_nothing(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    queue(store, tenant, alice, "voice")
    first = store.jobs.claim("one")
    assert store.jobs.claim("two") is None
    lapse(store, first.job_id)
    second = store.jobs.claim("two")
    assert second.attempt == 2
    assert store.jobs.heartbeat(first) == "lost"
    with pytest.raises(LeaseLost):
        complete(store, first)
    with pytest.raises(LeaseLost):
        store.jobs.save_checkpoint(first, 1, b"state")
    assert complete(store, second).full_name == "alice:voice@1"
    assert len(files_on_disk(store)) == 2  # the dataset and one version


def test_a_job_that_crashes_its_worker_three_times_is_given_up(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    job = queue(store, tenant, alice, "voice")
    for attempt in (1, 2, 3):
        claim = store.jobs.claim("w")
        assert claim.attempt == attempt
        store.jobs.release(claim, crashed=True)
    assert store.jobs.claim("w") is None
    assert store.jobs.get(tenant, job.id).error.code == "worker_crashed"


def test_one_running_job_a_prefix_and_tenants_take_turns(store, tenant, other_tenant):
    alice, zoe = store.owners.create_user(tenant, "alice"), store.owners.create_user(other_tenant, "zoe")
    for prefix in ("voice", "voice", "style"):
        queue(store, tenant, alice, prefix)
    queue(store, other_tenant, zoe, "voice")
    taken = [store.jobs.claim("w").job.prefix for _ in range(3)]
    assert taken == ["alice:voice", "zoe:voice", "alice:style"]
    assert store.jobs.claim("w") is None


def test_cancelled_job_cannot_publish(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    job = queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.cancel(tenant, job.id)
    with pytest.raises(LeaseLost):
        complete(store, claim)
    with pytest.raises(Conflict):
        store.jobs.cancel(tenant, job.id)


def test_checkpoint_is_kept_for_the_next_attempt_and_only_the_latest(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    assert store.jobs.load_checkpoint(claim) is None
    store.jobs.save_checkpoint(claim, 1, b"one")
    store.jobs.save_checkpoint(claim, 2, b"two")
    store.jobs.release(claim)
    again = store.jobs.claim("w")
    assert again.attempt == 2
    assert store.jobs.load_checkpoint(again) == b"two"
    assert sum(place.object_id.startswith("state") for place in files_on_disk(store)) == 1
    complete(store, again)
    assert not any(place.object_id.startswith("state") for place in files_on_disk(store))


def test_idempotency_key_makes_one_job_and_one_file(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    one = upload(store, tenant, alice, idempotency_key="k")
    assert upload(store, tenant, alice, idempotency_key="k").id == one.id
    with pytest.raises(Conflict):
        upload(store, tenant, alice, rows(("x", "y")), idempotency_key="k")
    job = queue(store, tenant, alice, "voice", [one.id], idempotency_key="j")
    assert queue(store, tenant, alice, "voice", [one.id], idempotency_key="j").id == job.id
    assert len(store.jobs.list(tenant)) == 1


def test_erasure_leaves_no_byte_of_the_user(store, tenant, tmp_path):
    canary = "kingfisher-canary-7731"
    alice = store.owners.create_user(tenant, "alice")
    bob = store.owners.create_user(tenant, "bob")
    key = store.keys.issue(tenant, "alice", None).api_key
    file = upload(store, tenant, alice, rows((canary, canary)))
    publish(store, tenant, alice, canary, files=[file.id])
    publish(store, tenant, bob, "voice")
    store.usage.record(tenant, alice, 5, 7)
    job = queue(store, tenant, alice, canary, [file.id])
    claim = store.jobs.claim("w")
    assert claim.job.id == job.id
    erasure = store.erasure.begin(tenant, "alice")
    assert store.keys.verify(key) is None
    with pytest.raises(NotFound):
        store.registry.resolve(tenant, f"alice:{canary}")
    with pytest.raises(LeaseLost):
        complete(store, claim)
    assert store.erasure.purge(erasure.id).state == "purging"  # a worker may still hold the data
    store.jobs.cancelled(claim)
    assert store.erasure.resume() == 0
    assert store.erasure.get(tenant, erasure.id).state == "done"
    assert {place.owner_id for place in files_on_disk(store)} == {bob.owner_id}
    if store._core.database.is_sqlite:
        for path in (tmp_path / "data").rglob("*"):
            assert not path.is_file() or canary.encode() not in path.read_bytes(), path
    assert store.usage.report(tenant, None, None, None)[0].completion_tokens == 7
    assert store.registry.resolve(tenant, "bob:voice").number == 1
    again = store.owners.create_user(tenant, "alice")
    assert again.owner_id != alice.owner_id
    assert [view.name for view in store.registry.list(tenant)] == ["bob:voice"]


def test_tenant_erasure_ends_its_keys_and_data(store, tenant, other_tenant):
    alice = store.owners.create_user(tenant, "alice")
    publish(store, tenant, alice, "voice")
    token = store.keys.issue(tenant, None, None).api_key
    erasure = store.tenants.erase(Admin(), tenant.tenant_id)
    assert store.keys.verify(token) is None
    assert store.erasure.purge(erasure.id).state == "done"
    assert files_on_disk(store) == set()
    assert [found.name for found in store.tenants.list(Admin())] == ["globex"]


def test_deleting_a_file_keeps_versions_unless_asked(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    one, two = upload(store, tenant, alice), upload(store, tenant, alice)
    publish(store, tenant, alice, "voice", files=[one.id])
    publish(store, tenant, alice, "voice", files=[two.id])
    store.datasets.delete(tenant, one.id)
    assert store.registry.resolve(tenant, "alice:voice").number == 2
    store.datasets.delete(tenant, two.id, versions=True)
    assert store.registry.resolve(tenant, "alice:voice").number == 1


def test_feed_is_acknowledged_by_every_live_process(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    one, two, at = store.feed.join("service"), store.feed.join("service"), store.feed.position()
    erasure = store.erasure.begin(tenant, "alice")
    assert [change.kind for change in store.feed.read(at)] == ["owner_erased"]
    assert store.feed.read(at)[0].owner_id == alice.owner_id
    store.feed.beat(one, erasure.seq)
    assert not store.feed.acked(erasure.seq)
    store.feed.beat(two, erasure.seq)
    assert store.feed.acked(erasure.seq)
    store.feed.leave(two)
    assert store.feed.acked(erasure.seq)


def test_audit_chain_shows_tampering(store, tenant):
    store.owners.create_user(tenant, "alice")
    assert store.audit.verify() >= 2
    with everything(store) as connection:
        connection.exec_driver_sql("UPDATE audit SET action = 'nothing' WHERE seq = 2")
    with pytest.raises(Tampered, match="entry 2"):
        store.audit.verify()


def test_quotas_of_jobs_and_bytes(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    with everything(store) as connection:
        connection.exec_driver_sql("UPDATE tenants SET max_jobs = 1, max_dataset_bytes = 100")
    file = upload(store, tenant, alice)
    queue(store, tenant, alice, "voice", [file.id])
    with pytest.raises(Quota):
        queue(store, tenant, alice, "style", [file.id])
    with pytest.raises(Quota):
        upload(store, tenant, alice, rows(("a" * 50, "b" * 50)))
    assert len(files_on_disk(store)) == 1


def test_quotas_of_files_users_and_keys(store, settings, tenant):
    alice = store.owners.create_user(tenant, "alice")
    file = upload(store, tenant, alice)
    few = open_store(settings.model_copy(update={"max_files": 1, "max_users": 2, "max_keys": 2}))
    with contextlib.closing(few):
        with pytest.raises(Quota, match="1 files are kept"):
            upload(few, tenant, alice)
        assert len(files_on_disk(store)) == 1
        few.datasets.delete(tenant, file.id)
        upload(few, tenant, alice)
        few.owners.create_user(tenant, "bob")
        for make in (few.owners.create_user, few.owners.ensure_task):
            with pytest.raises(Quota, match="2 users and tasks"):
                make(tenant, "carol")
        few.erasure.begin(tenant, "bob")
        assert few.owners.ensure_task(tenant, "carol") == few.owners.ensure_task(tenant, "carol")
        issued = few.keys.issue(tenant, "alice")
        with pytest.raises(Quota, match="2 keys are good"):
            few.keys.issue(tenant, None)
        few.keys.revoke(tenant, issued.id)
        few.keys.issue(tenant, None)


def test_corrupt_or_moved_files_are_refused(store, tenant):
    alice, bob = store.owners.create_user(tenant, "alice"), store.owners.create_user(tenant, "bob")
    publish(store, tenant, alice, "voice", b"alice's")
    publish(store, tenant, bob, "voice", b"bob's")
    a, b = (store.registry.resolve(tenant, f"{name}:voice") for name in ("alice", "bob"))
    mine, bobs = sealed(store, a.place), sealed(store, b.place)
    changed = [mine[:at] + bytes([mine[at] ^ 1]) + mine[at + 1 :] for at in range(len(mine))]
    cut = [mine[:length] for length in (0, 10, len(mine) - 1)]
    for wrong in (*changed, *cut, bobs):
        damage(store, a.place, lambda _, wrong=wrong: wrong)
        with pytest.raises(Corrupt):
            store.registry.read(a)
    assert store.registry.read(b) == b"bob's"
    damage(store, a.place, lambda _: mine)
    assert store.registry.read(a) == b"alice's"


def test_keys_wrong_in_any_letter_are_no_keys(store, tenant):
    token = store.keys.issue(tenant, None, None).api_key
    assert store.keys.verify(token).tenant_id == tenant.tenant_id
    for place in range(len(token)):
        changed = token[:place] + ("x" if token[place] != "x" else "y") + token[place + 1 :]
        assert store.keys.verify(changed) is None
    store.keys.revoke(tenant, store.keys.verify(token).key_id)
    assert store.keys.verify(token) is None


def test_no_secret_lies_in_the_database(store, tenant, tmp_path):
    token = store.keys.issue(tenant, None, None).api_key
    secret = token.split("_")[3].encode()
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes()
