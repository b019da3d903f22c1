"""Files between their bytes and their row when somebody is erased: nothing of them is left once it is `done`.

On both forms. Nobody sits out the wait for late files: what was noted is made older in the database.
"""

import errno
import multiprocessing
import secrets
import signal
import time
from urllib.parse import urlsplit

import pytest
from database_making import everything
from outside_servers import Way
from production_making import everything_kept
from sqlalchemy import update
from store_making import publish, queue, rows, trained, upload
from waiting import PATIENCE_S, wait_until

from prefix_store import failpoints, leases, object_storage, open_store
from prefix_store.checkpoints import seal
from prefix_store.crypto import Place
from prefix_store.errors import LeaseLost, NoRoom, NotFound, Unavailable, Unsent
from prefix_store.intents import announce, named, withdraw
from prefix_store.local_files import LocalDraft, LocalFiles
from prefix_store.publish import ResultFile
from prefix_store.tables import intents, jobs

LATE_S = 120.0


@pytest.fixture
def settings(settings, monkeypatch):
    monkeypatch.setattr(LocalFiles, "late_seconds", LATE_S)
    return settings.model_copy(update={"blobs_timeout_seconds": LATE_S / 4})


@pytest.fixture(autouse=True)
def disarmed():
    yield
    failpoints.arm("")


@pytest.fixture
def claim(store, tenant, alice):
    """A job of a task that learns from alice's file, and whose prefix had a version before."""
    task = store.owners.ensure_task(tenant, "e2e")
    publish(
        store, tenant, task, "e2e", files=[upload(store, tenant, store.owners.create_user(tenant, "bob")).id]
    )
    file = upload(store, tenant, alice, rows(("kingfisher", "kingfisher")))
    queue(store, tenant, task, "e2e", [file.id])
    return store.jobs.claim("w")


def made():
    return trained(b"learned from alice", [ResultFile("step_metrics.csv", b"step,loss\n")])


def _publish(store, claim):
    store.jobs.complete(claim, made(), promote=True)


def _keep(store, claim):
    store.jobs.save_checkpoint(claim, 1, b"of alice")


def _work(settings, act, what, at):
    store = open_store(settings)
    failpoints.arm(f"{at}=kill")
    act(store, *what)


def killed(settings, act, what, at):
    """What a process leaves that does `act` and is killed at a point."""
    process = multiprocessing.get_context("spawn").Process(target=_work, args=(settings, act, what, at))
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == -signal.SIGKILL


def cut_short(store, act, what, at):
    """The same without a process of its own: the point raises where nobody catches it."""
    failpoints.arm(f"{at}=raise")
    with pytest.raises(Unavailable):
        act(store, *what)
    failpoints.arm("")


def noted(store):
    with everything(store) as connection:
        return connection.exec_driver_sql("SELECT count(*) FROM intents").scalar_one()


def pass_by(store, seconds):
    """Files were noted so much longer ago, and workers that are dead have no lease any more."""
    with everything(store) as connection:
        connection.execute(update(intents).values(noted_at=intents.c.noted_at - seconds))
        connection.execute(update(jobs).values(lease_until=0.0))


def ended(store, erasure):
    """When all that may come late has come the erasure is done; what lies in the storage."""
    pass_by(store, LATE_S)
    wait_until(lambda: store.erasure.resume() == 0)
    assert store.erasure.purge(erasure.id).state == "done"
    assert noted(store) == 0
    return everything_kept(store)


def test_a_worker_killed_between_file_and_row_leaves_nothing_behind_an_erasure(
    store, settings, tenant, claim
):
    before = len(everything_kept(store)) - 1  # less alice's file
    killed(settings, _publish, (claim,), "publish.after_files")
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"
    assert len(everything_kept(store)) == before + 2
    left = ended(store, erasure)
    assert len(left) == before
    assert store.fsck.look(grace_seconds=0).litter == []


def test_nor_does_one_killed_before_its_file_has_its_name(store, settings, tenant, claim):
    if not store._core.database.is_sqlite:
        pytest.skip("a bucket has no drafts")
    before = len(everything_kept(store)) - 1
    killed(settings, _publish, (claim,), "file.after_sync")
    drafts = [path for path in (store.blobs.files.root / "tmp").rglob("*") if path.is_file()]
    assert len(drafts) == 1
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"
    assert len(ended(store, erasure)) == before
    assert not drafts[0].exists()


@pytest.mark.parametrize(
    ("act", "point"),
    [
        (_publish, "intent.noted"),
        (_publish, "publish.after_files"),
        (_publish, "publish.told"),
        (_keep, "checkpoint.after_seal"),
        (_keep, "checkpoint.after_row"),
    ],
)
def test_so_does_one_that_is_cut_short_anywhere_and_whose_lease_is_given_back(
    store, tenant, claim, act, point
):
    before = len(everything_kept(store)) - 1
    cut_short(store, act, (claim,), point)
    erasure = store.erasure.begin(tenant, "alice")
    store.jobs.cancelled(claim)
    assert store.erasure.purge(erasure.id).state == "purging"
    assert len(ended(store, erasure)) == before


def test_what_an_earlier_attempt_left_goes_though_its_job_ended_long_ago(store, tenant, claim):
    cut_short(store, _publish, (claim,), "publish.after_files")
    store.jobs.release(claim)
    store.jobs.fail(store.jobs.claim("w"), "bad", "bad data")
    erasure = store.erasure.begin(tenant, "alice")
    ended(store, erasure)
    assert store.fsck.look(grace_seconds=0).litter == []


def test_an_upload_killed_before_its_row_is_waited_for(store, settings, tenant, alice):
    killed(settings, upload, (tenant, alice), "dataset.after_seal")
    assert len(everything_kept(store)) == 1
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"
    late = Place(tenant.tenant_id, alice.owner_id, "file-late")
    store.blobs.put(late, b"a PUT that was given up and lands now")
    assert ended(store, erasure) == []


def test_whoever_ends_well_or_is_refused_leaves_no_note(store, tenant, alice, claim):
    assert noted(store) == 0
    store.jobs.save_checkpoint(claim, 1, b"state")
    assert noted(store) == 0
    store.erasure.begin(tenant, "alice")
    with pytest.raises(LeaseLost):
        store.jobs.complete(claim, made(), promote=True)
    with store.datasets.writer(tenant, store.owners.get(tenant, "bob"), "x", idempotency_key="k") as writer:
        writer.write(rows(("a", "b")))
        first = writer.finish()
    with store.datasets.writer(tenant, store.owners.get(tenant, "bob"), "x", idempotency_key="k") as writer:
        writer.write(rows(("a", "b")))
        assert writer.finish() == first
    assert noted(store) == 0


def test_a_note_goes_only_once_its_files_removal_is_on_the_disk(store, tenant, alice, monkeypatch):
    place = Place(tenant.tenant_id, alice.owner_id, "file-refused")
    announce(store._core, place, lambda connection: None)
    store.blobs.put(place, b"refused behind its file")
    synced = []

    def sync(places):
        synced.append((list(places), len(everything_kept(store)), noted(store)))

    monkeypatch.setattr(store.blobs.files, "sync", sync)
    withdraw(store._core, [place])
    assert synced == [([place], 0, 1)]
    assert noted(store) == 0


def test_who_is_refused_behind_its_files_removes_them_and_the_erasure_waits_for_nobody(
    store, tenant, claim, monkeypatch
):
    begun = []

    def sealed(*what):
        done = seal(*what)
        begun.append(store.erasure.begin(tenant, "alice"))
        return done

    monkeypatch.setattr(leases, "seal", sealed)
    with pytest.raises(LeaseLost):
        store.jobs.complete(claim, made(), promote=True)
    assert noted(store) == 0
    store.jobs.cancelled(claim)
    assert store.erasure.purge(begun[0].id).state == "done"


def test_a_note_that_was_taken_for_litter_is_never_named(store, tenant, alice):
    place = Place(tenant.tenant_id, alice.owner_id, "file-slow")
    announce(store._core, place, lambda connection: None)
    store.janitor.sweep(grace_seconds=-1)
    with store._core.database.write(alice.reach) as connection, pytest.raises(Unavailable, match="too late"):
        named(connection, [place])
    with pytest.raises(NotFound):
        store.datasets.get(tenant, place.object_id)


def test_a_publish_refused_while_the_bucket_is_away_leaves_nothing_behind_an_erasure(
    store, settings, tenant, claim, monkeypatch
):
    if store._core.database.is_sqlite:
        pytest.skip("a folder is not away")
    before = len(everything_kept(store)) - 1
    with Way(urlsplit(settings.blobs_endpoint).port) as way:
        through = {"blobs_endpoint": f"http://127.0.0.1:{way.port}"}
        worker = open_store(settings.model_copy(update=through))
        begun = []

        def sealed(*what):
            done = seal(*what)
            begun.append(store.erasure.begin(tenant, "alice"))
            way.cut()
            return done

        monkeypatch.setattr(leases, "seal", sealed)
        with pytest.raises(LeaseLost):
            worker.jobs.complete(claim, made(), promote=True)
        worker.jobs.cancelled(claim)
        assert len(everything_kept(store)) == before + 3
        assert store.erasure.purge(begun[0].id).state == "purging"
        assert len(ended(store, begun[0])) == before
        worker.close()


def test_a_put_that_lands_behind_its_time_out_is_waited_for(store, settings, tenant, claim, monkeypatch):
    """Its side was told that the storage does not answer; the storage takes it a second later all the same."""
    if store._core.database.is_sqlite:
        pytest.skip("a folder takes no PUT")
    before, files = len(everything_kept(store)) - 1, store.blobs.files
    create, under_way = files.create, []

    def lost(place, sealed):
        under_way.append((place, sealed))
        raise Unavailable("no answer")

    monkeypatch.setattr(files, "create", lost)
    with pytest.raises(Unavailable):
        store.jobs.complete(claim, made(), promote=True)
    erasure = store.erasure.begin(tenant, "alice")
    store.jobs.cancelled(claim)
    assert store.erasure.purge(erasure.id).state == "purging"
    pass_by(store, LATE_S / 2)
    create(*under_way[0])
    assert store.erasure.purge(erasure.id).state == "purging"
    assert len(ended(store, erasure)) == before


def test_what_was_never_sent_is_not_waited_for(store, settings, tenant, alice, claim, monkeypatch):
    """Behind a failure the storage is not asked for a moment; a full disk takes nothing."""
    if store._core.database.is_sqlite:

        def full(draft):
            draft.abort()
            raise OSError(errno.ENOSPC, "full")

        monkeypatch.setattr(LocalDraft, "commit", full)
        with pytest.raises(NoRoom):
            store.jobs.complete(claim, made(), promote=True)
        assert noted(store) == 0
        return
    monkeypatch.setattr(object_storage, "_PAUSE_S", PATIENCE_S)
    with Way(urlsplit(settings.blobs_endpoint).port) as way:
        through = {"blobs_endpoint": f"http://127.0.0.1:{way.port}"}
        worker = open_store(settings.model_copy(update=through))
        way.cut()
        with pytest.raises(Unavailable):
            worker.jobs.complete(claim, made(), promote=True)
        assert noted(store) == 1  # perhaps under way
        with pytest.raises(Unsent):
            worker.jobs.complete(claim, made(), promote=True)
        assert noted(store) == 1
        worker.close()


def test_large_files_are_in_memory_two_at_once_and_small_ones_pass_by(store, monkeypatch):
    if store._core.database.is_sqlite:
        pytest.skip("a folder takes them piece by piece")
    files = store.blobs.files
    with files.room(9 << 20), files.room(9 << 20):
        with files.room(1 << 20):
            pass
        monkeypatch.setattr(files, "_seconds", 1.0)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            store.blobs.put(Place("ten-a", "own-b", f"ver-{secrets.token_hex(4)}"), bytes(9 << 20))
        assert time.monotonic() - began < 60
    store.blobs.put(Place("ten-a", "own-b", f"ver-{secrets.token_hex(4)}"), bytes(9 << 20))


def test_a_sweep_takes_no_file_that_may_still_be_named(store, tenant, alice, monkeypatch):
    """A machine sleeps for longer than the grace between a file and its row, and wakes up in the midst of a sweep."""
    place = Place(tenant.tenant_id, alice.owner_id, "file-slow")
    announce(store._core, place, lambda connection: None)
    store.blobs.put(place, b"written before the sleep")
    delete, refused = store.blobs.delete, []

    def woken(which):
        with (
            store._core.database.write(alice.reach) as connection,
            pytest.raises(Unavailable, match="too late"),
        ):
            named(connection, [place])
        refused.append(which)
        return delete(which)

    monkeypatch.setattr(store._core.blobs, "delete", woken)
    store.janitor.sweep(grace_seconds=-1)
    assert refused
    assert everything_kept(store) == []


def test_a_sweep_leaves_a_file_whose_note_is_young_whatever_its_own_clock_says(
    store, tenant, alice, monkeypatch
):
    place = Place(tenant.tenant_id, alice.owner_id, "file-ahead")
    announce(store._core, place, lambda connection: None)
    store.blobs.put(place, b"on its way")
    monkeypatch.setattr(store.blobs.files, "places", lambda: [(place, 7200.0)])
    assert store.janitor.sweep(grace_seconds=3600.0) == 0
    assert len(everything_kept(store)) == 1
