"""Looking at a store as a whole, backing it up and restoring it: nothing that was deleted comes back."""

import contextlib
import json
import shutil
import threading
from dataclasses import dataclass
from typing import Any

import pytest
from database_making import environment, everything, production_database
from production_making import beside, bucket, damage
from service_making import complete, serving
from store_making import best, files_on_disk, publish, queue, rows, upload, user_scope
from store_making import complete as finish

from prefix_store import StoreSettings, open_store
from prefix_store.crypto import Place
from prefix_store.errors import NotFound, NotMigrated, StoreError, Unavailable
from prefix_store.scope import Admin
from prefix_store.sealed_files import path_of

CANARY = "kingfisher-7731"
URLS = ("PREFIX_SYSTEM_DATABASE_URL", "PREFIX_OWNER_DATABASE_URL")


@contextlib.contextmanager
def empty_place(store, folder, *, secrets=True):
    """Settings of an empty store of the same form, with the secrets of `store`."""
    folder.mkdir()
    if secrets:
        shutil.copytree(store.settings.data_dir / "secrets", folder / "secrets")
    if store._core.database.is_sqlite:
        yield StoreSettings(data_dir=folder)
        return
    with production_database() as urls:
        values = dict(zip(URLS, (urls["system"], urls["owner"]), strict=True))
        url = urls["application"]
        with environment(values, URLS):
            yield StoreSettings(data_dir=folder, database_url=url, **beside(url))


@contextlib.contextmanager
def opened(settings):
    store = open_store(settings)
    try:
        yield store
    finally:
        store.close()


def restored(settings, backup, ledgers, **options):
    with opened(settings) as store:
        return store.restore.run(backup, ledgers, **options)


def all_rows(store):
    with everything(store) as connection:
        names = store._core.database.is_sqlite and "SELECT name FROM sqlite_master WHERE type = 'table'"
        tables = connection.exec_driver_sql(
            names or "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        ).scalars()
        return str([connection.exec_driver_sql(f'SELECT * FROM "{name}"').all() for name in tables.all()])


def test_a_look_finds_what_is_missing_damaged_and_litter_and_changes_nothing(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    kept = store.registry.resolve(tenant, "alice:voice").place
    file, gone = upload(store, tenant, alice), upload(store, tenant, alice)
    queue(store, tenant, alice, "voice", [file.id])
    store.jobs.save_checkpoint(store.jobs.claim("w"), 1, b"state")
    looked = store.fsck.look(deep=True)
    assert looked.sound
    assert (looked.rows, looked.files, looked.litter, looked.young) == (5, 5, [], 0)
    litter = Place(tenant.tenant_id, alice.owner_id, "ver-of-no-row")
    store.blobs.put(litter, b"nobody's")
    store.blobs.files.delete(gone.place)
    damage(store, kept, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    before = files_on_disk(store)
    looked = store.fsck.look()
    assert not looked.sound
    assert [finding.place for finding in looked.missing] == [gone.place]
    assert [looked.missing[0].kind, looked.damaged, looked.litter, looked.young] == ["dataset", [], [], 1]
    looked = store.fsck.look(deep=True, grace_seconds=0)
    assert [finding.place for finding in looked.damaged] == [kept]
    assert [finding.place for finding in looked.litter] == [litter]
    assert files_on_disk(store) == before
    assert store.janitor.sweep(grace_seconds=-1) == 1
    assert store.fsck.look(grace_seconds=0).litter == []


def test_files_of_two_owners_that_changed_places_are_damaged(store, tenant, alice):
    bob = store.owners.create_user(tenant, "bob")
    mine, foreign = upload(store, tenant, alice), upload(store, tenant, bob)
    sealed = store.blobs.files.read(foreign.place)
    damage(store, mine.place, lambda _: sealed)
    assert store.fsck.look().sound
    assert [finding.place for finding in store.fsck.look(deep=True).damaged] == [mine.place]


def test_an_object_that_somebody_has_only_hidden_is_missing(store, tenant, alice):
    if store._core.database.is_sqlite:
        pytest.skip("a folder hides nothing")
    place = upload(store, tenant, alice).place
    name, _, client = bucket()
    client.delete_object(Bucket=name, Key=f"{store.blobs.files._prefix}{path_of(place)}")
    assert [finding.place for finding in store.fsck.look().missing] == [place]


def test_whoever_does_not_own_the_tables_is_told_so_and_not_that_all_is_litter(
    store, settings, tenant, alice
):
    if store._core.database.is_sqlite:
        pytest.skip("SQLite has no roles")
    upload(store, tenant, alice)
    with (
        opened(settings.model_copy(update={"owner_database_url": None})) as other,
        pytest.raises(StoreError, match="PREFIX_OWNER_DATABASE_URL"),
    ):
        other.fsck.look()


@dataclass
class Before:
    """What stood when the backup was made: what is deleted afterwards, and what stays."""

    hers: Any
    learned: Any
    live: Any
    file: Any
    job: Any
    revoked: Any
    kept: Any
    her_key: str
    kept_file: Any


@pytest.fixture
def before(store, tenant, other_tenant):
    bob, zoe = store.owners.create_user(tenant, "bob"), store.owners.create_user(other_tenant, "zoe")
    gone = store.owners.create_user(tenant, CANARY)
    task, old = store.owners.ensure_task(tenant, "e2e"), store.owners.ensure_task(tenant, "old")
    hers = upload(store, tenant, gone, rows((CANARY, CANARY)))
    publish(store, tenant, gone, "voice", CANARY.encode(), files=[hers.id])
    publish(store, tenant, task, "e2e", files=[hers.id])
    learned = store.registry.resolve(tenant, "task:e2e").place
    publish(store, tenant, old, "old")
    publish(store, other_tenant, zoe, "voice")
    publish(store, tenant, bob, "dropped")
    publish(store, tenant, bob, "voice", b"one")
    live = store.registry.resolve(tenant, "bob:voice").place
    file = upload(store, tenant, bob)
    publish(store, tenant, bob, "learned", files=[file.id])
    job = queue(store, tenant, bob, "waiting")
    revoked, kept = (store.keys.issue(tenant, None) for _ in range(2))
    her_key = store.keys.issue(tenant, CANARY).api_key
    kept_file = upload(store, tenant, bob, rows(("stays", "here")))
    return Before(hers, learned, live, file, job, revoked, kept, her_key, kept_file)


def delete_all(store, tenant, other_tenant, before):
    """Eight deletions, of every kind."""
    for owner in (CANARY, "task:old"):
        assert store.erasure.purge(store.erasure.begin(tenant, owner).id).state == "done"
    store.erasure.purge(store.tenants.erase(Admin(), other_tenant.tenant_id).id)
    store.registry.delete_prefix(tenant, "bob:dropped")
    bob = store.owners.get(tenant, "bob")
    store.jobs.cancel(tenant, before.job.id)
    publish(store, tenant, bob, "voice", b"two")  # so that the first is live no more, and may be deleted
    store.registry.delete_version(tenant, "bob:voice", 1)
    store.datasets.delete(tenant, before.file.id, versions=True)
    store.keys.revoke(tenant, before.revoked.id)


def test_nothing_that_was_deleted_since_a_backup_comes_back(store, tenant, other_tenant, before, tmp_path):
    """User, task, tenant, prefix, version, file with what learned from it, key and job; by rows, files and API."""
    backup, ledger = tmp_path / "backup", store.settings.ledger_folder
    made = store.backups.make(backup)
    assert (made.missing, made.rows["tenants"]) == ([], 2)
    held = {path.name for path in backup.rglob("*")}
    assert not held & {"secrets", "master_key", "pepper", "admin_key", "ledger", "deletions.jsonl"}
    delete_all(store, tenant, other_tenant, before)
    assert CANARY not in (ledger / "deletions.jsonl").read_text()
    with empty_place(store, tmp_path / "again") as settings:
        told = restored(settings, backup, [ledger])
        assert (told.replayed, told.open_erasures) == (8, 0)
        with opened(settings) as again:
            look_at_what_is_left(again, tenant, before)
        with serving(settings.data_dir, settings.database_url) as service:
            for key in (before.her_key, before.revoked.api_key):
                assert service.client(key).get("/v1/models").status_code == 401
            client = service.client(before.kept.api_key)
            assert complete(client, f"{CANARY}:voice").status_code == 404
            assert CANARY not in client.get("/v1/users").text + client.get("/v1/files").text
            assert client.get(f"/v1/files/{before.hers.id}").status_code == 404
            assert client.get(f"/v1/files/{before.kept_file.id}").status_code == 200


def look_at_what_is_left(again, tenant, before):
    again.check_migrated()
    assert again.audit.verify() > 0
    assert CANARY not in all_rows(again)
    assert again.fsck.look(deep=True, grace_seconds=0).sound
    for place in (before.hers.place, before.file.place, before.learned, before.live):
        assert again.blobs.files.read(place) is None
    assert {place.tenant_id for place in files_on_disk(again)} == {tenant.tenant_id}
    scope = again.keys.verify(before.kept.api_key)
    assert again.datasets.read(scope, before.kept_file.id) == rows(("stays", "here"))
    assert again.registry.list(scope) == []
    assert again.jobs.get(scope, before.job.id).status == "cancelled"
    with pytest.raises(NotFound):
        again.registry.resolve(scope, "task:e2e")


def test_a_deleted_version_is_not_made_again_by_its_job_that_a_backup_holds_open(
    store, tenant, alice, tmp_path
):
    publish(store, tenant, alice, "voice")
    job = queue(store, tenant, alice, "voice")
    store.backups.make(tmp_path / "backup")
    finish(store, store.jobs.claim("w"))
    store.registry.promote(tenant, "alice:voice", 1)
    store.registry.delete_version(tenant, "alice:voice", 2)
    with empty_place(store, tmp_path / "again") as settings:
        restored(settings, tmp_path / "backup", [store.settings.ledger_folder])
        with opened(settings) as again:
            assert again.jobs.get(tenant, job.id).status == "cancelled"
            assert again.jobs.claim("w") is None
            assert again.registry.resolve(tenant, "alice:voice").number == 1


def test_an_entry_whose_deletion_was_not_committed_hides_no_later_one(store, tenant, alice, tmp_path):
    """The file goes with the first entry; what learned from it must go with the second all the same."""
    file = upload(store, tenant, alice)
    publish(store, tenant, alice, "voice", files=[file.id])
    store.backups.make(tmp_path / "backup")
    store.ledger.append("dataset.deleted", tenant.tenant_id, file.id, 0.0)
    store.datasets.delete(tenant, file.id, versions=True)
    with empty_place(store, tmp_path / "again") as settings:
        assert restored(settings, tmp_path / "backup", [store.settings.ledger_folder]).replayed == 2
        with opened(settings) as again:
            assert again.registry.list(tenant) == []
            assert files_on_disk(again) == set()
            assert again.fsck.look(deep=True, grace_seconds=0).sound


def test_a_backup_fits_its_files_while_others_write_and_delete(store, tenant, alice, tmp_path):
    publish(store, tenant, alice, "voice", files=[upload(store, tenant, alice).id])
    end, turns = threading.Event(), []

    def work():
        while not end.is_set():
            store.datasets.delete(tenant, upload(store, tenant, alice).id)
            turns.append(1)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        while len(turns) < 2:
            end.wait(0.01)
        assert store.backups.make(tmp_path / "backup").missing == []
    finally:
        end.set()
        thread.join()
    with empty_place(store, tmp_path / "again") as settings:
        restored(settings, tmp_path / "backup", [store.settings.ledger_folder])
        with opened(settings) as again:
            looked = again.fsck.look(deep=True, grace_seconds=0)
            assert looked.sound
            assert looked.rows == looked.files == 2


@pytest.mark.parametrize("newer", [None, best(step=2)])
def test_checkpoints_that_a_training_replaces_meanwhile_are_neither_missing_nor_a_reason_to_begin_again(
    store, tenant, alice, tmp_path, monkeypatch, newer
):
    publish(store, tenant, alice, "voice")
    job = queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    copy, copies = store.backups._copy, []

    def trained_on(*what):
        """Between the database's copy and the files' there is always another checkpoint."""
        if not copies:
            store.jobs.save_checkpoint(claim, 2, b"newer", newer)
        copies.append(what)
        return copy(*what)

    store.jobs.save_checkpoint(claim, 1, b"state", best())
    monkeypatch.setattr(store.backups, "_copy", trained_on)
    made = store.backups.make(tmp_path / "backup")
    assert (made.missing, len(copies)) == ([], 5)
    assert len(made.files) == (3 if newer else 4)  # the prefix stays where a state alone is replaced
    store.jobs.save_checkpoint(claim, 3, b"kept")
    with empty_place(store, tmp_path / "again") as settings:
        restored(settings, tmp_path / "backup", [store.settings.ledger_folder])
        with opened(settings) as again:
            assert again.fsck.look(deep=True).sound
            assert again.jobs.checkpoints(tenant, job.id) == []
            assert again.jobs.load_checkpoint(claim) is None
            again.janitor.sweep()
            assert again.fsck.look(grace_seconds=0).litter == []
    gone = upload(store, tenant, alice)
    store.blobs.files.delete(gone.place)
    assert store.backups.make(tmp_path / "other").missing == [path_of(gone.place)]


def test_a_restore_refuses_what_would_bring_deleted_things_back_or_mix_two_stores(
    store, settings, tenant, alice, tmp_path
):
    file = upload(store, tenant, alice)
    backup, ledger, older = tmp_path / "backup", store.settings.ledger_folder, tmp_path / "older-ledger"
    store.keys.revoke(tenant, store.keys.issue(tenant, None).id)
    shutil.copytree(ledger, older)
    store.backups.make(backup)
    with pytest.raises(StoreError, match="not empty"):
        store.backups.make(backup)
    with pytest.raises(StoreError, match="the store itself"):
        store.backups.make(settings.data_dir / "data" / "backup")
    with pytest.raises(StoreError, match=r"already|not empty"):
        store.restore.run(backup)
    with empty_place(store, tmp_path / "foreign", secrets=False) as foreign:
        with pytest.raises(StoreError, match="another master key"):
            restored(foreign, backup, [ledger])
        assert all_rows_of_nothing(foreign)
    with empty_place(store, tmp_path / "again") as other:
        for ledgers, match in (
            ((), "no ledger"),
            ([older], "goes up to this backup"),
            ([tmp_path], "holds no ledger"),
        ):
            with pytest.raises(StoreError, match=match):
                restored(other, backup, ledgers)
        manifest = backup / "manifest.json"
        sealed = manifest.read_text()
        manifest.write_text(json.dumps(json.loads(sealed) | {"ledger": ""}))
        with pytest.raises(StoreError, match="was changed"):
            restored(other, backup, [ledger])
        manifest.write_text(sealed)
        kept = backup / "blobs" / tenant.tenant_id / alice.owner_id / file.id
        data = kept.read_bytes()
        kept.write_bytes(data[:-1])
        with pytest.raises(StoreError, match="missing or was changed"):
            restored(other, backup, [ledger])
        kept.write_bytes(data)
        with opened(other) as half:  # the restore was cut short, so nothing may start on it
            for start in (half.prepare, half.check_migrated, half.migrate):
                with pytest.raises(NotMigrated, match="being restored"):
                    start()
        with pytest.raises(StoreError, match=r"not empty|already"):
            restored(other, backup, [ledger])


def all_rows_of_nothing(settings):
    """Nothing was made of a restore that was refused."""
    with opened(settings) as store, pytest.raises((NotMigrated, Unavailable)):  # not even a role to log in as
        store.check_migrated()
    return True


def test_a_lost_ledger_is_a_choice(store, tenant, alice, tmp_path):
    store.backups.make(tmp_path / "backup")
    key = store.keys.issue(tenant, None).api_key
    shutil.rmtree(store.settings.ledger_folder)
    with empty_place(store, tmp_path / "again") as settings:
        assert restored(settings, tmp_path / "backup", (), without_ledger=True).replayed == 0
        with opened(settings) as again:
            again.prepare()
            assert user_scope(again, tenant, "alice").user == alice
            assert again.keys.verify(key) is None  # made after the backup


def test_nothing_is_deleted_that_the_ledger_cannot_tell(store, tenant, alice):
    folder = store.settings.ledger_folder
    folder.rmdir() if folder.exists() else None
    folder.write_bytes(b"")  # where a full or broken disk would refuse
    with pytest.raises(Unavailable, match="ledger"):
        store.erasure.begin(tenant, "alice")
    assert store.owners.get(tenant, "alice") == alice
    folder.unlink()
    store.erasure.begin(tenant, "alice")
    assert [entry.action for entry in store.ledger.entries()] == ["user.erased"]
    assert [entry.object_id for entry in store.ledger.entries()] == [alice.owner_id]
