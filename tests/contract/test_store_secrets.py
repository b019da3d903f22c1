"""A database belongs to the secrets that its data began with: others neither open it nor write a line into its logs."""

import contextlib
import shutil

import pytest
from database_making import everything
from sqlalchemy import delete, select
from store_making import publish, queue
from test_store_copies import empty_place, restored
from test_store_schema import SCRIPTS, upgrade

from prefix_store import adopt_secrets, open_store
from prefix_store.errors import ForeignSecrets, Unavailable
from prefix_store.installation import Installation
from prefix_store.migrate import migrate
from prefix_store.reach import NOWHERE
from prefix_store.scope import Admin
from prefix_store.secrets_folder import lacking, open_secrets
from prefix_store.tables import installation

HERE = "docs/runbooks/lost-worker.md"


@pytest.fixture
def elsewhere(store, tmp_path):
    """Settings of another machine's empty data folder on the same database, bucket and ledger."""

    def settings(name, **more):
        url = store.settings.url
        update = {
            "data_dir": tmp_path / name,
            "database_url": url,
            "ledger_dir": store.settings.ledger_folder,
        }
        return store.settings.model_copy(update=update | more)

    return settings


def refused(settings, match):
    with pytest.raises(ForeignSecrets, match=match) as caught:
        open_store(settings)
    assert str(settings.data_dir / "secrets") in str(caught.value)
    assert HERE in str(caught.value)


def as_before_the_row(store):
    with everything(store) as connection:
        connection.execute(delete(installation))


def row(store):
    with everything(store) as connection:
        return connection.execute(select(installation)).all()


@contextlib.contextmanager
def opened(settings):
    store = open_store(settings)
    try:
        store.prepare()
        yield store
    finally:
        store.close()


def test_other_secrets_or_none_open_no_store_that_has_data_and_the_right_ones_do(
    store, elsewhere, tenant, alice
):
    job = queue(store, tenant, alice, "voice")
    store.keys.revoke(tenant, store.keys.issue(tenant, None).id)
    entries, ledger = store.audit.verify(), store.ledger.entries()
    empty, foreign = elsewhere("empty"), elsewhere("foreign")
    refused(empty, "master_key is not there")
    assert lacking(empty.data_dir) is not None  # and none was made
    open_secrets(foreign.data_dir, None)
    refused(foreign, "another installation")
    half = elsewhere("half")
    shutil.copytree(store.settings.data_dir / "secrets", half.data_dir / "secrets")
    (half.data_dir / "secrets" / "pepper").unlink()
    refused(half, "pepper is not there")
    shutil.copy(foreign.data_dir / "secrets" / "pepper", half.data_dir / "secrets" / "pepper")
    refused(half, "another installation")
    assert store.jobs.get(tenant, job.id).status == "queued"
    assert (store.audit.verify(), store.ledger.entries()) == (entries, ledger)
    right = elsewhere("right")
    shutil.copytree(store.settings.data_dir / "secrets", right.data_dir / "secrets")
    with opened(right) as again:
        assert again.jobs.claim("w").job_id == job.id
        assert again.keys.verify(again.tenants.create(Admin(), "globex")[1]) is not None
    assert store.audit.verify() == entries + 1


def test_what_the_database_says_of_its_secrets_is_none_of_them(store):
    (told,) = row(store)
    folder = store.settings.data_dir / "secrets"
    for name in ("master_key", "pepper"):
        assert (folder / name).read_text().strip() not in str(told)
    assert told.pepper_proof != told.key_id


def test_of_two_that_open_an_empty_database_first_with_secrets_of_their_own_one_is_refused(
    store, elsewhere, monkeypatch
):
    as_before_the_row(store)
    store.close()
    first, second = elsewhere("first"), elsewhere("second")
    add = Installation._added

    def overtaken(*told):
        """Another process is through between the look and the row."""
        monkeypatch.undo()
        open_store(first).close()
        return add(*told)

    monkeypatch.setattr(Installation, "_added", overtaken)
    refused(second, "another installation")
    assert len(row(store)) == 1
    with opened(first):
        pass


@pytest.mark.parametrize("files", [True, False])
def test_a_database_of_before_the_row_takes_the_secrets_that_its_data_began_with(
    store, elsewhere, tenant, alice, files
):
    if files:
        publish(store, tenant, alice, "voice")
    as_before_the_row(store)
    empty, foreign = elsewhere("empty"), elsewhere("foreign")
    refused(empty, "is not there")
    open_secrets(foreign.data_dir, None)
    refused(foreign, "another installation")
    adopt_secrets(foreign)
    adopt_secrets(empty)
    assert row(store) == []
    again = open_store(store.settings)
    assert len(row(store)) == 1
    again.close()
    refused(foreign, "another installation")


def test_a_role_that_may_not_read_the_log_takes_the_secrets_that_sealed_the_first_file(
    store, elsewhere, tenant, alice
):
    """As production updates: who migrates has no secrets, and a service logs in as no owner."""
    if store._core.database.is_sqlite:
        pytest.skip("one role does everything")
    as_before_the_row(store)
    service = store.settings.model_copy(update={"owner_database_url": None})
    with pytest.raises(ForeignSecrets, match=r"`prefixserve migrate` once .*PREFIX_OWNER_DATABASE_URL"):
        open_store(service)  # nothing is sealed yet
    migrate(elsewhere("no-secrets"))
    adopt_secrets(elsewhere("no-secrets"))
    assert row(store) == []
    adopt_secrets(store.settings)
    assert len(row(store)) == 1
    as_before_the_row(store)
    publish(store, tenant, alice, "voice")
    foreign = elsewhere("foreign", owner_database_url=None)
    open_secrets(foreign.data_dir, None)
    refused(foreign, "another installation")
    assert row(store) == []
    open_store(service).close()
    assert len(row(store)) == 1
    with (
        store._core.database.write(NOWHERE) as connection,
        pytest.raises(Exception, match="permission denied"),
    ):
        connection.execute(delete(installation))


def test_an_older_schema_refuses_new_secrets_where_a_tenant_is(settings, tmp_path):
    upgrade(settings, SCRIPTS, "0007")
    store = open_store(settings)
    with everything(store) as connection:
        columns = "id, name, state, created_at, max_queued, max_jobs, max_dataset_bytes"
        made = "'ten-1', 'acme', 'live', 1.0, 9, 9, 1000000"
        connection.exec_driver_sql(f"INSERT INTO tenants ({columns}) VALUES ({made})")
    refused(
        settings.model_copy(update={"data_dir": tmp_path / "empty", "database_url": settings.url}),
        "master_key is not there",
    )
    store.prepare() if settings.migrates_at_start else store.migrate()
    store.check_migrated()
    assert len(row(store)) == 1
    store.close()


def test_no_secrets_are_made_for_a_database_that_does_not_answer(store, tmp_path):
    away = store.settings.model_copy(
        update={
            "data_dir": tmp_path / "new",
            "database_url": "postgresql://x@127.0.0.1:1/x",
            "system_database_url": None,
            "owner_database_url": None,
        }
    )
    with pytest.raises(Unavailable):
        open_store(away)
    assert not (away.data_dir / "secrets").exists()
    open_secrets(away.data_dir, None)
    open_store(away).close()  # what needs no database goes on: `prefixserve ledger` for one


@pytest.mark.parametrize("older", [True, False])
def test_a_restored_database_belongs_to_the_secrets_of_its_backup(store, tenant, alice, tmp_path, older):
    if older:
        as_before_the_row(store)
    store.backups.make(tmp_path / "backup")
    with empty_place(store, tmp_path / "again") as settings:
        restored(settings, tmp_path / "backup", [store.settings.ledger_folder])
        with opened(settings.model_copy(update={"owner_database_url": None})) as again:
            assert again.owners.get(tenant, "alice") == alice
            assert len(row(again)) == 1
        foreign = {"data_dir": tmp_path / "foreign", "database_url": settings.url}
        refused(settings.model_copy(update=foreign), "master_key is not there")
        open_secrets(tmp_path / "foreign", None)
        refused(settings.model_copy(update=foreign), "another installation")


def test_a_master_key_that_did_not_seal_the_first_file_is_not_taken_beside_the_right_pepper(
    store, elsewhere, tenant, alice
):
    if store._core.database.is_sqlite:
        pytest.skip("files lie in the other machine's own folder")
    publish(store, tenant, alice, "voice")
    as_before_the_row(store)
    half = elsewhere("half")
    open_secrets(half.data_dir, None)
    shutil.copy(store.settings.data_dir / "secrets" / "pepper", half.data_dir / "secrets" / "pepper")
    adopt_secrets(half)
    refused(half, "another installation")
    assert row(store) == []
    adopt_secrets(store.settings)
    assert len(row(store)) == 1


def test_processes_that_start_at_once_on_an_empty_database_share_its_secrets(store, monkeypatch):
    """One looks for whose it is, and before it looks for data another has said so and written some."""
    as_before_the_row(store)
    services, ahead = store.settings.model_copy(update={"owner_database_url": None}), []

    def meanwhile(_):
        if not ahead:
            ahead.append("once")
            with opened(services) as first:
                first.tenants.create(Admin(), "acme")
        return False

    monkeypatch.setattr("prefix_store.installation.is_being_restored", meanwhile)
    with opened(services) as second:
        assert second.tenants.list(Admin())
    assert len(row(store)) == 1
