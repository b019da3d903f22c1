"""What several processes and threads do at the same moment, and what a kill leaves."""

import multiprocessing
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from database_making import everything
from store_making import complete, files_on_disk, publish, queue, rows, upload
from waiting import wait_until

from prefix_store import open_store
from prefix_store.errors import LeaseLost, NotFound, Quota
from prefix_store.scope import Admin

SPAWN = multiprocessing.get_context("spawn")


def _claim_all(settings, gate, out):
    store = open_store(settings)
    gate.wait(120)
    while (claim := store.jobs.claim(str(os.getpid()))) is not None:
        out.put((claim.job_id, claim.attempt))
        complete(store, claim)
    out.put(None)
    store.close()


def test_processes_that_compete_take_each_job_once_and_publish_it_once(store, settings, tenant):
    patient = settings.model_copy(update={"lease_seconds": 60.0})
    alice = store.owners.create_user(tenant, "alice")
    file = upload(store, tenant, alice)
    made = {queue(store, tenant, alice, f"p{i % 6}", [file.id]).id for i in range(24)}
    gate, out = SPAWN.Barrier(3), SPAWN.Queue()
    workers = [SPAWN.Process(target=_claim_all, args=(patient, gate, out)) for _ in range(3)]
    for worker in workers:
        worker.start()
    taken, ended = [], 0
    while ended < 3:
        found = out.get(timeout=120)
        ended += found is None
        taken += [found] if found else []
    for worker in workers:
        worker.join(120)
    # A worker may find only jobs whose prefix is being trained by another and go home: take what is left.
    while (claim := store.jobs.claim("last")) is not None:
        taken.append((claim.job_id, claim.attempt))
        complete(store, claim)
    assert sorted(taken) == sorted((job, 1) for job in made)
    views = store.registry.list(tenant)
    assert [[version.number for version in view.versions] for view in views] == [[4, 3, 2, 1]] * 6
    assert store.audit.verify() > 48


def _both(first, second, turn=0):
    """Run two calls at once, the second some milliseconds later; return what each gave or raised."""

    def later():
        time.sleep(turn * 0.002)
        return second()

    def call(action):
        try:
            return action()
        except (LeaseLost, NotFound, Quota) as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return [future.result() for future in [pool.submit(call, first), pool.submit(call, later)]]


def test_publishing_while_the_user_is_erased_leaves_nothing(store, tenant):
    published = 0
    for turn in range(12):
        alice = store.owners.create_user(tenant, "alice")
        queue(store, tenant, alice, "voice")
        claim = store.jobs.claim("w")
        done, erasure = _both(
            lambda c=claim: complete(store, c), lambda: store.erasure.begin(tenant, "alice"), turn
        )
        published += not isinstance(done, LeaseLost)
        with pytest.raises(NotFound):
            store.registry.resolve(tenant, "alice:voice")
        store.jobs.cancelled(claim)
        assert store.erasure.purge(erasure.id).state == "done"
        assert files_on_disk(store) == set()
    print(f"published before the erasure: {published} of 12")


def test_publishing_for_a_task_while_a_contributor_is_erased_leaves_no_such_version(store, tenant):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e")
    for turn in range(12):
        alice = store.owners.create_user(tenant, "alice")
        file = upload(store, tenant, alice)
        queue(store, tenant, task, "e2e", [file.id])
        claim = store.jobs.claim("w")
        _, erasure = _both(
            lambda c=claim: complete(store, c), lambda: store.erasure.begin(tenant, "alice"), turn
        )
        store.jobs.cancelled(claim)
        assert store.registry.resolve(tenant, "task:e2e").number == 1
        assert [version.number for version in store.registry.versions(tenant, "task:e2e")] == [1]
        assert store.erasure.purge(erasure.id).state == "done"


def test_a_job_queued_while_a_contributor_is_erased_never_learns_from_it(store, tenant):
    task = store.owners.ensure_task(tenant, "e2e")
    own = upload(store, tenant, task)
    for turn in range(12):
        alice = store.owners.create_user(tenant, "alice")
        file = upload(store, tenant, alice)
        _both(
            lambda f=file: queue(store, tenant, task, "e2e", [own.id, f.id]),
            lambda: store.erasure.begin(tenant, "alice"),
            turn,
        )
        assert store.jobs.claim("w") is None


def test_promoting_while_the_version_is_taken_away_never_points_at_nothing(store, tenant):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e")
    for turn in range(12):
        alice = store.owners.create_user(tenant, "alice")
        done = publish(store, tenant, task, "e2e", files=[upload(store, tenant, alice).id], promote=False)
        number = int(done.full_name.split("@")[1])
        _both(
            lambda n=number: store.registry.promote(tenant, "task:e2e", n),
            lambda: store.erasure.begin(tenant, "alice"),
            turn,
        )
        assert store.registry.resolve(tenant, "task:e2e").number == 1


def test_uploads_at_once_do_not_pass_the_quota_together(store, tenant):
    alice = store.owners.create_user(tenant, "alice")
    data = rows(("a" * 40, "b" * 40))
    with everything(store) as connection:
        connection.exec_driver_sql(f"UPDATE tenants SET max_dataset_bytes = {len(data) * 3 // 2}")
    one, two = _both(lambda: upload(store, tenant, alice, data), lambda: upload(store, tenant, alice, data))
    assert sum(isinstance(found, Quota) for found in (one, two)) == 1
    assert len(files_on_disk(store)) == 1


def test_entries_of_feed_and_audit_stand_in_one_order_without_gaps(store, tenant):
    at = store.feed.position()
    names = [f"u{i}" for i in range(24)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: store.owners.create_user(tenant, name), names))
        told = list(pool.map(lambda name: store.erasure.begin(tenant, name).seq, names))
    seen = [change.seq for change in store.feed.read(at)]
    assert seen == sorted(told) == list(range(at + 1, at + 25))
    assert store.audit.verify() == 49


def _quiet(store):
    """Whether the database has done with what killed processes asked of it."""
    if store._core.database.is_sqlite:
        return True
    others = "datname = current_database() AND pid <> pg_backend_pid() AND state <> 'idle'"
    with everything(store) as connection:
        busy = connection.exec_driver_sql(f"SELECT count(*) FROM pg_stat_activity WHERE {others}")
        return busy.scalar_one() == 0


def _erase(settings, tenant_id, gate):
    store = open_store(settings)
    gate.wait(120)
    store.tenants.erase(Admin(), tenant_id)
    store.erasure.resume()
    os._exit(0)


def test_an_erasure_killed_anywhere_is_finished_at_the_next_start(store, settings):
    chance, begun_count = random.Random(7), 0
    for turn in range(10):
        _, key = store.tenants.create(Admin(), f"tenant {turn}")
        scope = store.keys.verify(key)
        for name in ("alice", "bob"):
            owner = store.owners.create_user(scope, name)
            publish(store, scope, owner, "voice")
            upload(store, scope, owner)
        gate = SPAWN.Barrier(2)
        process = SPAWN.Process(target=_erase, args=(settings, scope.tenant_id, gate))
        process.start()
        gate.wait(120)
        while turn % 4 and store.keys.verify(key) is not None:
            time.sleep(0.001)  # three of four are killed after the commit
        time.sleep(chance.uniform(0.0, 0.03))
        os.kill(process.pid, signal.SIGKILL)
        process.join(120)
        wait_until(lambda: _quiet(store))
        begun = store.keys.verify(key) is None
        begun_count += begun
        assert store.erasure.resume() == 0
        if begun:
            assert not {place for place in files_on_disk(store) if place.tenant_id == scope.tenant_id}
        else:  # killed before the commit: nothing happened
            assert len(store.registry.list(scope)) == 2
            assert store.registry.read(store.registry.resolve(scope, "alice:voice"))
    print(f"killed after the erasure had begun: {begun_count} of 10")
    assert store.audit.verify() > 0


def test_users_whom_one_version_learned_from_are_erased_at_the_same_moment(store, tenant):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e")
    for turn in range(12):
        users = [store.owners.create_user(tenant, name) for name in ("alice", "bob")]
        own, others = (upload(store, tenant, user).id for user in users)
        publish(store, tenant, task, "e2e", files=[others])
        publish(store, tenant, task, "e2e", files=[own, others])
        publish(store, tenant, task, "e2e", files=[own])
        erasures = _both(
            lambda: store.erasure.begin(tenant, "alice"), lambda: store.erasure.begin(tenant, "bob"), turn % 4
        )
        assert store.registry.resolve(tenant, "task:e2e").number == 1
        assert [version.number for version in store.registry.versions(tenant, "task:e2e")] == [1]
        assert [store.erasure.purge(erasure.id).state for erasure in erasures] == ["done", "done"]


def test_a_file_is_deleted_once_and_its_versions_once(store, tenant):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e")
    for turn in range(12):
        file = upload(store, tenant, task)
        publish(store, tenant, task, "e2e", files=[file.id])
        ends = _both(
            lambda f=file: store.datasets.delete(tenant, f.id, versions=True),
            lambda f=file: store.datasets.delete(tenant, f.id, versions=True),
            turn % 4,
        )
        assert [type(end) for end in ends].count(NotFound) == 1
        assert store.registry.resolve(tenant, "task:e2e").number == 1


def test_a_tenant_is_erased_while_a_user_of_it_is(store):
    for turn in range(12):
        tenant = store.keys.verify(store.tenants.create(Admin(), f"acme{turn}")[1])
        for name in ("alice", "bob"):
            upload(store, tenant, store.owners.create_user(tenant, name))
        whole, _ = _both(
            lambda t=tenant: store.erasure.begin_tenant(Admin(), t.tenant_id),
            lambda t=tenant: store.erasure.begin(t, "alice"),
            turn % 4,
        )
        assert store.erasure.purge(whole.id).state == "done"
        assert files_on_disk(store) == set()
