"""The prefix of a job's checkpoint: named by its job, replaced by the next one, gone with the job."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from database_making import everything
from production_making import damage
from store_making import (
    BASE,
    best,
    complete,
    files_on_disk,
    lapse,
    publish,
    queue,
    rows,
    trained,
    upload,
    user_scope,
)

from prefix_store.errors import Conflict, Corrupt, LeaseLost, NoCheckpoint, NotFound
from prefix_store.scope import Admin


@pytest.fixture
def claim(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    return store.jobs.claim("w")


def name_of(claim, step=None):
    return f"{claim.job.prefix}@{claim.job_id}" + ("" if step is None else f"-step-{step}")


def prefix_files(store):
    return {place for place in files_on_disk(store) if place.object_id.startswith("ckpt-")}


def test_a_running_jobs_last_checkpoint_is_called_by_the_jobs_name(store, tenant, alice, claim):
    name = name_of(claim)
    with pytest.raises(NoCheckpoint, match="running and has no checkpoint yet"):
        store.registry.resolve(tenant, name)
    store.jobs.save_checkpoint(claim, 3, b"state")
    with pytest.raises(NoCheckpoint, match="no checkpoint yet"):  # a state alone cannot be called
        store.registry.resolve(tenant, name)
    assert store.jobs.checkpoints(tenant, claim.job_id) == []
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one", step=4))
    found = store.registry.resolve(tenant, name)
    assert store.registry.read(found) == b"one"
    assert (found.m, found.position_offset, found.base_fingerprint) == (10, 0, BASE)
    assert found.template == {"separator": "\n", "end_id": 0}
    assert (found.number, found.job_id, found.name) == (None, claim.job_id, "alice:voice")
    assert found.full_name == name_of(claim, 4)
    assert store.registry.resolve(tenant, name_of(claim, 4)) == found
    (kept,) = store.jobs.checkpoints(tenant, claim.job_id)
    assert (kept.id, kept.name, kept.step) == (found.version_id, name, 4)
    assert (kept.job_id, kept.m, kept.metrics) == (claim.job_id, 10, {"step": 4, "valid_loss": 3.0})
    assert claim.job.created_at <= kept.created_at
    with pytest.raises(NotFound):  # no version went live, and none is listed
        store.registry.resolve(tenant, "alice:voice")
    assert store.registry.list(tenant) == []


def test_the_next_checkpoint_takes_the_place_and_the_file_of_the_one_before(store, tenant, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one", step=5))
    first = store.registry.resolve(tenant, name_of(claim))
    store.jobs.save_checkpoint(claim, 6, b"state")  # no better one since: the prefix stays
    assert store.registry.resolve(tenant, name_of(claim)) == first
    assert store.registry.read(first) == b"one"
    store.jobs.save_checkpoint(claim, 9, b"state", best(b"two", step=8))
    second = store.registry.resolve(tenant, name_of(claim))
    assert second.version_id != first.version_id
    assert store.registry.read(second) == b"two"
    assert prefix_files(store) == {second.place}
    with pytest.raises(NotFound):
        store.registry.read(first)
    with pytest.raises(NoCheckpoint, match="that of step 8"):
        store.registry.resolve(tenant, name_of(claim, 5))
    assert store.jobs.load_checkpoint(claim) == b"state"
    assert len(files_on_disk(store)) == 3  # the upload, the state, the prefix


def test_a_job_that_was_cut_stays_callable_while_it_waits_and_after(store, tenant, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    store.jobs.release(claim)
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"one"
    again = store.jobs.claim("another")
    assert store.jobs.load_checkpoint(again) == b"state"
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"one"
    store.jobs.save_checkpoint(again, 7, b"state", best(b"two", step=7))
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"two"


@pytest.mark.parametrize("promote", [True, False])
def test_a_job_that_succeeded_is_called_by_its_name_too_live_or_not(store, tenant, claim, promote):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    done = complete(store, claim, promote=promote)
    found = store.registry.resolve(tenant, name_of(claim))
    assert (found.full_name, found.version_id) == ("alice:voice@1", done.version_id)
    assert found == store.registry.resolve(tenant, "alice:voice@1")
    assert store.registry.read(found) == b"tensor bytes"
    assert prefix_files(store) == set()
    assert store.jobs.checkpoints(tenant, claim.job_id) == []
    with pytest.raises(NoCheckpoint, match="call what it became by alice:voice@1"):
        store.registry.resolve(tenant, name_of(claim, 1))


def test_the_name_of_a_job_whose_version_was_deleted_says_so(store, tenant, alice, claim):
    complete(store, claim)
    publish(store, tenant, alice, "voice")
    store.registry.delete_version(tenant, "alice:voice", 1)
    with pytest.raises(NoCheckpoint, match="the version that the job became was deleted"):
        store.registry.resolve(tenant, name_of(claim))


def ends(store, tenant, claim):
    file = claim.job.training_files[0]
    return {
        "cancel": lambda: store.jobs.cancel(tenant, claim.job_id),
        "fail": lambda: store.jobs.fail(claim, "bad", "bad"),
        "crash": lambda: crash(store, claim),
        "prefix": lambda: store.registry.delete_prefix(tenant, "alice:voice"),
        "file": lambda: store.datasets.delete(tenant, file),
        "user": lambda: store.erasure.begin(tenant, "alice"),
        "tenant": lambda: store.tenants.erase(Admin(), tenant.tenant_id),
    }


def crash(store, claim):
    for _ in range(store.settings.max_attempts):
        store.jobs.release(claim, crashed=True)
        claim = store.jobs.claim("w")
    assert claim is None


@pytest.mark.parametrize("end", ["cancel", "fail", "crash", "prefix", "file", "user", "tenant"])
def test_a_checkpoint_goes_with_its_job_and_every_process_is_told(store, tenant, claim, end):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    found = store.registry.resolve(tenant, name_of(claim))
    at = store.feed.position()
    ends(store, tenant, claim)[end]()
    with pytest.raises(NotFound):
        store.registry.resolve(tenant, name_of(claim))
    with pytest.raises(NotFound):
        store.registry.read(found)
    told = store.feed.read(at)
    if end == "tenant":  # one change is for all that is the tenant's
        assert [(one.kind, one.tenant_id, one.owner_id) for one in told] == [
            ("owner_erased", tenant.tenant_id, "")
        ]
    else:
        (gone,) = [change for change in told if change.job_id == claim.job_id]
        assert (gone.kind, gone.tenant_id, gone.version_id) == ("version_gone", tenant.tenant_id, None)
        if end in {"prefix", "user"}:  # what the caller waits for comes behind it
            assert gone.seq <= told[-1].seq
    store.erasure.resume()
    assert prefix_files(store) == set()
    with pytest.raises(LeaseLost):
        store.jobs.save_checkpoint(claim, 6, b"state", best(b"late"))
    assert prefix_files(store) == set()
    if end in {"cancel", "fail", "crash", "file"}:
        with pytest.raises(NoCheckpoint, match=r"the job is (cancelled|failed) and has left no checkpoint"):
            store.registry.resolve(tenant, name_of(claim))


def test_a_version_that_goes_takes_the_checkpoints_of_its_job_along(store, tenant, alice, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    done = complete(store, claim)
    at = store.feed.position()
    store.registry.delete_prefix(tenant, "alice:voice")
    (gone,) = store.feed.read(at)
    assert (gone.version_id, gone.job_id) == (done.version_id, claim.job_id)


def test_a_worker_that_lost_its_job_keeps_nothing(store, settings, tenant, claim):
    store.jobs.release(claim)
    again = store.jobs.claim("another")
    store.jobs.save_checkpoint(again, 4, b"state", best(b"theirs"))
    with pytest.raises(LeaseLost):
        store.jobs.save_checkpoint(claim, 5, b"state", best(b"late"))
    found = store.registry.resolve(tenant, name_of(claim))
    assert store.registry.read(found) == b"theirs"
    assert prefix_files(store) == {found.place}


def test_a_job_that_ends_while_its_checkpoint_is_written_keeps_nothing(store, tenant, claim, monkeypatch):
    put = store.blobs.put

    def slowly(place, data):
        if place.object_id.startswith("ckpt-"):
            store.jobs.cancel(tenant, claim.job_id)
        return put(place, data)

    monkeypatch.setattr(store.blobs, "put", slowly)
    with pytest.raises(LeaseLost):
        store.jobs.save_checkpoint(claim, 5, b"state", best(b"late"))
    assert len(files_on_disk(store)) == 1  # the upload
    assert store.jobs.checkpoints(tenant, claim.job_id) == []


def test_a_foreign_job_and_an_absent_one_answer_alike(store, tenant, other_tenant, alice, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    store.owners.create_user(tenant, "bob")
    bob, her = user_scope(store, tenant, "bob"), user_scope(store, tenant, "alice")
    away = store.owners.create_user(other_tenant, "alice")
    publish(store, tenant, alice, "other")
    queue(store, other_tenant, away, "voice")
    name = name_of(claim)
    assert store.registry.read(store.registry.resolve(her, name)) == b"one"
    absent = f"alice:voice@ftjob-{'0' * 22}"

    def answer(scope, asked):
        with pytest.raises(NotFound) as caught:
            store.registry.resolve(scope, asked)
        assert type(caught.value) is NotFound
        return str(caught.value).replace(asked, "")

    alike = {answer(scope, asked) for scope in (bob, other_tenant) for asked in (name, absent)}
    alike |= {answer(tenant, f"alice:other@{claim.job_id}"), answer(tenant, absent)}
    assert len(alike) == 1
    for scope in (bob, other_tenant):
        with pytest.raises(NotFound):
            store.jobs.checkpoints(scope, claim.job_id)


def test_a_user_calls_a_tasks_prefix_but_not_its_jobs(store, tenant, alice):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e")
    queue(store, tenant, task, "e2e")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    her = user_scope(store, tenant, "alice")
    assert store.registry.resolve(her, "task:e2e").number == 1
    with pytest.raises(NotFound):
        store.registry.resolve(her, name_of(claim))
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"one"


def test_a_tasks_checkpoint_that_learned_from_an_erased_user_goes_with_it(store, settings, tenant, alice):
    canary = b"kingfisher-7731"
    task = store.owners.ensure_task(tenant, "e2e")
    file = upload(store, tenant, alice, rows(("a", "b")))
    queue(store, tenant, task, "e2e", [file.id])
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 5, b"state", best(canary))
    found = store.registry.resolve(tenant, name_of(claim))
    erasure = store.erasure.begin(tenant, "alice")
    (gone,) = [change for change in store.feed.read(0) if change.job_id == claim.job_id]
    assert gone.seq < erasure.seq
    with pytest.raises(NoCheckpoint, match="cancelled"):
        store.registry.resolve(tenant, name_of(claim))
    store.jobs.cancelled(claim)
    assert store.erasure.purge(erasure.id).state == "done"
    with pytest.raises(NotFound):
        store.registry.read(found)
    assert files_on_disk(store) == set()


def test_no_byte_of_an_erased_users_checkpoint_lies_under_data(store, settings, tenant, alice, claim):
    canary = "kingfisher-7731"
    told = trained(canary.encode())
    told.template["separator"] = canary
    told.metrics["step"] = 7_731_773
    store.jobs.save_checkpoint(claim, 5, b"state", told)
    assert store.registry.resolve(tenant, name_of(claim)).template["separator"] == canary
    erasure = store.erasure.begin(tenant, "alice")
    store.jobs.cancelled(claim)
    assert store.erasure.purge(erasure.id).state == "done"
    assert files_on_disk(store) == set()
    with everything(store) as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM checkpoints").scalar_one() == 0
    if store._core.database.is_sqlite:
        files = [path for path in (settings.data_dir / "data").rglob("*") if path.is_file()]
        for path in files:
            data = path.read_bytes()
            assert canary.encode() not in data, path
            assert b"7731773" not in data, path


def test_a_sweep_leaves_the_last_checkpoint_and_takes_what_no_row_names(store, settings, tenant, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    before = files_on_disk(store)
    assert store.janitor.sweep(grace_seconds=-1) == 0
    assert files_on_disk(store) == before


def test_a_damaged_checkpoint_is_corrupt_and_costs_the_run_nothing(store, tenant, claim):
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    found = store.registry.resolve(tenant, name_of(claim))
    damage(store, found.place, lambda data: data[:-1])
    with pytest.raises(Corrupt):
        store.registry.read(found)
    assert store.jobs.load_checkpoint(claim) == b"state"
    assert complete(store, claim).promoted


def test_a_checkpoint_of_the_code_before_is_one_without_a_prefix(store, tenant, claim):
    """Processes of that code know none of the newer columns; they may still run beside these."""
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    known = "tenant_id, owner_id, job_id, object_id, update_number, sha256, created_at"
    with everything(store) as connection:
        row = connection.exec_driver_sql(f"SELECT {known} FROM checkpoints").one()
        connection.exec_driver_sql("DELETE FROM checkpoints")
        values = ", ".join(repr(value) for value in row)
        connection.exec_driver_sql(f"INSERT INTO checkpoints ({known}) VALUES ({values})")
    with pytest.raises(NoCheckpoint, match="no checkpoint yet"):
        store.registry.resolve(tenant, name_of(claim))
    assert store.jobs.load_checkpoint(claim) == b"state"
    assert store.janitor.sweep(grace_seconds=-1) == 1  # the prefix that no row names any more
    store.jobs.save_checkpoint(claim, 7, b"state", best(b"two"))
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"two"


def test_a_lease_that_ran_out_leaves_the_checkpoint_to_the_next_attempt(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 5, b"state", best(b"one"))
    lapse(store, claim.job_id)
    assert store.registry.read(store.registry.resolve(tenant, name_of(claim))) == b"one"
    again = store.jobs.claim("another")
    assert (again.job_id, again.attempt) == (claim.job_id, 2)
    with pytest.raises(LeaseLost):
        store.jobs.save_checkpoint(claim, 6, b"state", best(b"late"))
    assert store.registry.read(store.registry.resolve(tenant, name_of(again))) == b"one"


def at_once(*actions):
    """Run calls at the same moment; what each gave, or the refusal that it met."""

    def call(action):
        try:
            return action()
        except (LeaseLost, NotFound, Conflict) as refused:
            return refused

    with ThreadPoolExecutor(len(actions)) as pool:
        return [future.result() for future in [pool.submit(call, action) for action in actions]]


def test_a_checkpoint_kept_while_its_user_is_erased_leaves_nothing(store, tenant):
    for _ in range(6):
        alice = store.owners.create_user(tenant, "alice")
        queue(store, tenant, alice, "voice")
        claim = store.jobs.claim("w")
        store.jobs.save_checkpoint(claim, 1, b"state", best(b"one"))
        _, erasure = at_once(
            lambda c=claim: store.jobs.save_checkpoint(c, 2, b"state", best(b"two")),
            lambda: store.erasure.begin(tenant, "alice"),
        )
        with pytest.raises(NotFound):
            store.registry.resolve(tenant, name_of(claim))
        store.jobs.cancelled(claim)
        assert store.erasure.purge(erasure.id).state == "done"
        assert files_on_disk(store) == set()


def test_a_job_that_ends_from_every_side_at_once_is_told_of_once(store, tenant):
    """Each side takes its locks in the same order, so that none waits for another in a circle."""
    task = store.owners.ensure_task(tenant, "e2e")
    own = upload(store, tenant, task)
    for _ in range(6):
        alice = store.owners.create_user(tenant, "alice")
        file = upload(store, tenant, alice)
        queue(store, tenant, task, "e2e", [own.id, file.id])
        claim = store.jobs.claim("w")
        store.jobs.save_checkpoint(claim, 1, b"state", best(b"one"))
        at_once(
            lambda c=claim: store.jobs.cancel(tenant, c.job_id),
            lambda c=claim: store.jobs.fail(c, "bad", "bad"),
            lambda c=claim: complete(store, c),
            lambda f=file: store.datasets.delete(tenant, f.id, versions=True),
            lambda: store.erasure.begin(tenant, "alice"),
        )
        told = [change for change in store.feed.read(0) if change.job_id == claim.job_id]
        assert len(told) == 1
        with pytest.raises(NotFound):
            store.registry.resolve(tenant, name_of(claim))
        store.jobs.cancelled(claim)
        assert store.erasure.resume() == 0
        assert files_on_disk(store) == {own.place}


def test_a_checkpoint_of_which_half_was_written_leaves_no_file(store, claim, monkeypatch):
    before, put = files_on_disk(store), store._core.blobs.put

    def full(place, payload):
        if place.object_id.startswith("ckpt-"):
            raise OSError(28, "No space left on device")
        return put(place, payload)

    monkeypatch.setattr(store._core.blobs, "put", full)
    with pytest.raises(OSError, match="No space"):
        store.jobs.save_checkpoint(claim, 5, b"state", best(b"one", step=4))
    assert files_on_disk(store) == before
