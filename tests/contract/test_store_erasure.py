"""Erasure and sweeping, beyond the story: who still holds data, what lies on the disk."""

from contextlib import contextmanager

import pytest
from database_making import everything
from sqlalchemy import event, func, insert, select
from store_making import complete, files_on_disk, lapse, publish, queue, rows, upload

from prefix_store import open_store, tables
from prefix_store.crypto import Place
from prefix_store.errors import Conflict, Corrupt, NotFound
from prefix_store.litter import note
from prefix_store.names import new_id
from prefix_store.scope import Admin
from prefix_store.usage import Receipt


def test_a_worker_of_a_task_that_holds_a_contributors_data_holds_up_the_erasure(store, tenant, alice):
    task = store.owners.ensure_task(tenant, "e2e")
    file = upload(store, tenant, alice, rows(("kingfisher", "kingfisher")))
    queue(store, tenant, task, "e2e", [file.id])
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"learned from alice")
    erasure = store.erasure.begin(tenant, "alice")
    assert store.jobs.heartbeat(claim) == "cancel"
    assert store.erasure.purge(erasure.id).state == "purging"
    assert files_on_disk(store) == set()  # the checkpoint too
    assert store.erasure.pending() == [erasure.id]
    lapse(store, claim.job_id)
    assert store.erasure.resume() == 0
    assert store.erasure.get(tenant, erasure.id).state == "done"
    assert store.erasure.pending() == []
    assert store.erasure.purge(erasure.id).done_at == store.erasure.get(Admin(), erasure.id).done_at


def test_a_file_that_comes_late_to_an_erased_owner_is_swept_at_once(store, tenant, alice):
    bob = store.owners.create_user(tenant, "bob")
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "done"
    store.blobs.put(Place(tenant.tenant_id, alice.owner_id, "ver-late"), b"late")
    on_its_way = Place(tenant.tenant_id, bob.owner_id, "ver-new")
    store.blobs.put(on_its_way, b"new")
    assert store.janitor.sweep() == 1
    assert files_on_disk(store) == {on_its_way}
    assert store.janitor.sweep(grace_seconds=-1) == 1
    assert files_on_disk(store) == set()


def test_a_sweep_leaves_what_rows_name(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    queue(store, tenant, alice, "voice")
    store.jobs.save_checkpoint(store.jobs.claim("w"), 1, b"state")
    before = files_on_disk(store)
    assert len(before) == 4
    assert store.janitor.sweep(grace_seconds=-1) == 0
    assert files_on_disk(store) == before


def test_a_removal_cut_short_before_the_unlink_is_finished_at_the_next_start(store, settings, tenant, alice):
    place = upload(store, tenant, alice).place
    with everything(store) as connection:  # where a kill leaves it: committed, not unlinked
        note(connection, [place])
    store.close()
    again = open_store(settings)
    again.erasure.resume()
    assert files_on_disk(again) == set()
    with everything(again) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM litter").scalar_one() == 0
    again.close()


def test_an_erased_task_is_gone_and_its_contributors_stay(store, tenant, alice):
    task = store.owners.ensure_task(tenant, "e2e")
    file = upload(store, tenant, alice)
    publish(store, tenant, task, "e2e", files=[file.id])
    erasure = store.erasure.begin(tenant, "task:e2e")
    assert erasure.kind == "task"
    assert store.erasure.purge(erasure.id).state == "done"
    assert files_on_disk(store) == {file.place}
    assert store.owners.list_tasks(tenant) == []
    assert store.owners.ensure_task(tenant, "e2e").owner_id != task.owner_id


def test_no_name_or_text_of_an_erased_tenant_lies_under_data(store, settings, tenant, other_tenant):
    canary = "kingfisher-7731"
    owner = store.owners.create_user(tenant, canary)
    publish(store, tenant, owner, canary, canary.encode(), files=[upload(store, tenant, owner).id])
    store.jobs.cancel(tenant, queue(store, tenant, owner, canary, metadata={"k": canary}, suffix=canary).id)
    store.usage.record(tenant, owner, 1, 1, receipt=Receipt("writer", 1))
    zoe = store.owners.create_user(other_tenant, "zoe")
    publish(store, other_tenant, zoe, "voice")
    erasure = store.tenants.erase(Admin(), tenant.tenant_id)
    assert store.erasure.purge(erasure.id).state == "done"
    with everything(store) as connection:
        for table in (tables.usage, tables.idempotency, tables.api_keys):
            left = select(func.count()).where(table.c.tenant_id == tenant.tenant_id)
            assert connection.execute(left.select_from(table)).scalar_one() == 0, table.name
    assert {place.tenant_id for place in files_on_disk(store)} == {other_tenant.tenant_id}
    assert store.registry.resolve(other_tenant, "zoe:voice").number == 1
    with pytest.raises(NotFound):
        store.tenants.get(tenant.tenant_id)
    with pytest.raises(NotFound):
        store.tenants.erase(Admin(), tenant.tenant_id)
    with pytest.raises(NotFound):
        store.owners.create_user(tenant, "late")  # a scope made before the erasure
    if store._core.database.is_sqlite:
        files = [path for path in (settings.data_dir / "data").rglob("*") if path.is_file()]
        assert len(files) >= 2
        for path in files:
            assert canary.encode() not in path.read_bytes(), path


def test_an_upload_that_ends_after_the_erasure_leaves_nothing(store, tenant, alice):
    with store.datasets.writer(tenant, alice, "x") as writer:
        writer.write(rows(("a", "b")))
        store.erasure.begin(tenant, "alice")
        with pytest.raises(NotFound):
            writer.finish()
    assert files_on_disk(store) == set()


def test_a_name_that_was_erased_may_be_given_again_at_once(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    with pytest.raises(Conflict):
        store.owners.create_user(tenant, "alice")
    erasure = store.erasure.begin(tenant, "alice")
    again = store.owners.create_user(tenant, "alice")
    assert publish(store, tenant, again, "voice").full_name == "alice:voice@1"
    assert store.erasure.purge(erasure.id).state == "done"
    assert store.registry.read(store.registry.resolve(tenant, "alice:voice"))


def test_a_version_deleted_while_it_is_read_is_not_found_and_a_missing_file_is_corrupt(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    publish(store, tenant, alice, "voice")
    first = store.registry.resolve(tenant, "alice:voice@1")
    store.blobs.delete(first.place)
    with pytest.raises(Corrupt):
        store.registry.read(first)
    assert store.registry.read(store.registry.resolve(tenant, "alice:voice"))
    store.registry.delete_version(tenant, "alice:voice", 1)
    with pytest.raises(NotFound):
        store.registry.read(first)


def test_a_user_that_learned_from_nobody_else_takes_only_its_own_versions_along(store, tenant, alice):
    bob = store.owners.create_user(tenant, "bob")
    publish(store, tenant, bob, "voice")
    queue(store, tenant, bob, "voice")
    claim = store.jobs.claim("w")
    store.erasure.begin(tenant, "alice")
    assert store.jobs.heartbeat(claim) == "continue"
    assert complete(store, claim).promoted


@contextmanager
def _transactions(store):
    """The statements of each transaction that is committed meanwhile, in a list of lists."""
    engine, done, open_now = store._core.database.engine, [], {}

    def begun(connection):
        open_now[connection] = []

    def executed(connection, cursor, statement, *_):
        open_now.setdefault(connection, []).append(statement)

    def committed(connection):
        done.append(open_now.pop(connection, []))

    heard = (("begin", begun), ("before_cursor_execute", executed), ("commit", committed))
    for name, listener in heard:
        event.listen(engine, name, listener)
    try:
        yield done
    finally:
        for name, listener in heard:
            event.remove(engine, name, listener)


def _many_users(store, tenant, count):
    """Users with a key, a prefix, a queued job and some use each."""
    users = [new_id("own") for _ in range(count)]
    mine = [{"tenant_id": tenant.tenant_id, "owner_id": user} for user in users]
    pairs = [(of, f"pre-{of['owner_id']}") for of in mine]
    begun = {"status": "queued", "spec": {}, "attempt": 1, "crashes": 0, "run_at": 1.0, "lease_until": 0.0}
    rows = {
        tables.owners: [of | {"kind": "user", "name": of["owner_id"], "state": "live"} for of in mine],
        tables.api_keys: [
            of | {"id": new_id("key"), "digest": "", "last4": "", "grants": [], "revoked_at": None}
            for of in mine
        ],
        tables.prefixes: [
            of | {"prefix_id": prefix, "name": "voice", "last_number": 0} for of, prefix in pairs
        ],
        tables.jobs: [
            of | {"id": new_id("ftjob"), "seq": 1000 + at, "prefix_id": prefix} | begun
            for at, (of, prefix) in enumerate(pairs)
        ],
    }
    used = {"requests": 1, "prompt_tokens": 1, "completion_tokens": 1}
    days = [of | {"day": f"2024-01-{day:02}"} | used for of in mine for day in range(1, 4)]
    with everything(store) as connection:
        for table, values in rows.items():
            connection.execute(insert(table).values(created_at=1.0), values)
        connection.execute(insert(tables.usage), days)


def test_a_tenant_of_many_users_goes_in_few_statements_and_holds_up_nobody(
    store, tenant, other_tenant, alice
):
    store.owners.create_user(other_tenant, "zoe")
    queue(store, tenant, alice, "voice")
    store.jobs.save_checkpoint(claim := store.jobs.claim("w"), 1, b"state")
    _many_users(store, tenant, 399)
    at = store.feed.position()
    with _transactions(store) as done:
        erasure = store.tenants.erase(Admin(), tenant.tenant_id)
    (begun,) = done
    counted = [at for at, statement in enumerate(begun) if statement.startswith("UPDATE counters")]
    assert len(begun) < 25
    assert len(counted) == 2  # of changes and of the audit log: what every other deletion waits for
    assert len(begun) - counted[0] < 8  # and not before all else is done
    (told,) = store.feed.read(at)
    assert (told.kind, told.tenant_id, told.owner_id) == ("owner_erased", tenant.tenant_id, "")
    assert store.jobs.heartbeat(claim) == "cancel"
    with everything(store) as connection:
        assert {row.status for row in connection.execute(tables.jobs.select())} == {"cancelled"}
        assert connection.execute(tables.checkpoints.select()).all() == []
        told = connection.execute(tables.job_events.select().where(tables.job_events.c.level == "info")).all()
        assert len({row.job_id for row in told if row.message.startswith("Fine-tuning job cancelled")}) == 400
    with _transactions(store) as done:
        assert store.erasure.purge(erasure.id).state == "purging"  # the claim's lease
    assert max(map(len, done)) < 30
    assert sum(map(len, done)) < 200
    assert (
        sum(any(one.startswith("DELETE FROM jobs") for one in each) for each in done) == 3
    )  # one of four is held
    with _transactions(store) as again:
        assert store.erasure.purge(erasure.id).state == "purging"
    assert sum(map(len, again)) < sum(map(len, done)) / 2  # what is gone is not looked at again
    store.jobs.cancelled(claim)
    assert store.erasure.purge(erasure.id).state == "done"
    with everything(store) as connection:
        for table in (tables.jobs, tables.prefixes, tables.usage, tables.job_events, tables.checkpoints):
            assert connection.execute(table.select()).all() == []
        assert {row.state for row in connection.execute(tables.owners.select())} == {"erased", "live"}
    assert files_on_disk(store) == set()
    assert store.owners.get(other_tenant, "zoe").name == "zoe"
