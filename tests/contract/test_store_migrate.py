"""The schema, on SQLite and PostgreSQL."""

import multiprocessing
import stat

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from database_making import everything
from sqlalchemy import text

from prefix_store import open_store
from prefix_store.errors import StoreError
from prefix_store.scope import Admin
from prefix_store.tables import metadata


def _start(settings, gate):
    gate.wait(120)
    store = open_store(settings)
    store.migrate()
    store.check_migrated()
    store.close()


def test_processes_that_start_at_once_migrate_once(settings):
    context = multiprocessing.get_context("spawn")
    gate = context.Barrier(4)
    started = [context.Process(target=_start, args=(settings, gate)) for _ in range(4)]
    for process in started:
        process.start()
    for process in started:
        process.join(90)
    assert [process.exitcode for process in started] == [0] * 4
    store = open_store(settings)
    assert store.tenants.create(Admin(), "acme")[0].name == "acme"
    store.close()


def test_the_migrations_make_exactly_the_tables_of_the_code(store):
    with everything(store) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []


def test_a_store_that_is_not_migrated_says_so(settings):
    store = open_store(settings)
    with pytest.raises(StoreError, match=r"run `prefixserve migrate`|role .* does not exist|password"):
        store.check_migrated()  # before, not even the roles are there
    store.migrate()
    store.migrate()
    store.check_migrated()
    store.close()


def test_the_databases_clock_counts_seconds_with_fractions(store):
    seen = {store.feed.join("x"), store.feed.join("y")}
    assert len(seen) == 2
    with everything(store) as connection:
        beats = connection.execute(text("SELECT beat_at FROM processes")).scalars().all()
    assert all(1.7e9 < beat < 5e9 for beat in beats)
    assert any(beat % 1 for beat in beats)


def test_sqlite_loses_nothing_and_leaves_nothing(store, settings):
    if not store._core.database.is_sqlite:
        pytest.skip("pragmas are SQLite's")
    with everything(store) as connection:
        found = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "secure_delete")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "secure_delete": 1}
    for path in (settings.data_dir / "data").glob("store.sqlite3*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
