"""Schemas old and new: coming up from each, and code that starts on the schema of newer code."""

import shutil
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from database_making import everything
from sqlalchemy import text
from store_making import publish

import prefix_store
from prefix_store import open_store
from prefix_store.db import SystemDatabase
from prefix_store.engines import open_engine
from prefix_store.errors import NotMigrated
from prefix_store.scope import Admin
from prefix_store.tables import metadata

SCRIPTS = Path(prefix_store.__file__).parent / "migrations"
OLDER = sorted(path.name[:4] for path in (SCRIPTS / "versions").glob("0*.py"))[:-1]


def alembic(scripts):
    config = Config()
    config.set_main_option("script_location", str(scripts))
    config.set_main_option("path_separator", "os")
    return config


HEAD = ScriptDirectory.from_config(alembic(SCRIPTS)).get_current_head()


def upgrade(settings, scripts, revision):
    """As the owner, with the migrations of some other code."""
    database = SystemDatabase(open_engine(settings.owner_url, settings.waits))
    config = alembic(scripts)
    with database.write() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
    database.close()


@pytest.mark.parametrize("revision", OLDER)
def test_a_schema_of_every_older_code_comes_up_with_its_rows(settings, revision):
    upgrade(settings, SCRIPTS, revision)
    store = open_store(settings)
    with everything(store) as connection:
        made = "'ten-1', 'acme', 'live', 1.0, 9, 9, 1000000"
        columns = "id, name, state, created_at, max_queued, max_jobs, max_dataset_bytes"
        connection.execute(text(f"INSERT INTO tenants ({columns}) VALUES ({made})"))
    store.migrate()
    store.check_migrated()
    with everything(store) as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    (tenant,) = store.tenants.list(Admin())
    assert (tenant.id, tenant.name) == ("ten-1", "acme")
    scope = store.keys.verify(store.tenants.create(Admin(), "globex")[1])
    assert publish(store, scope, store.owners.create_user(scope, "alice"), "voice").promoted
    store.close()


def test_a_process_that_may_not_migrate_refuses_an_older_schema_and_says_what_to_run(settings):
    upgrade(settings, SCRIPTS, OLDER[-1])
    if settings.two_roles:  # as an operator would, who only forgot the new one
        settings = settings.model_copy(
            update={"database_url": settings.owner_database_url, "system_database_url": None}
        )
    store = open_store(settings.model_copy(update={"migrate": False}))
    with pytest.raises(
        NotMigrated, match=f"has schema {OLDER[-1]}, this code needs {HEAD}.*prefixserve migrate"
    ):
        store.prepare()
    store.close()
    store = open_store(settings)
    store.prepare()
    store.check_migrated()
    store.close()


@pytest.fixture
def newer(tmp_path, store):
    """Has newer code migrate the database: adds a column, and says which is the oldest code that can go on."""

    def migrate(oldest):
        scripts = tmp_path / "newer"
        shutil.copytree(SCRIPTS, scripts)
        (scripts / "versions" / "9999_newer.py").write_text(
            "import sqlalchemy as sa\nfrom alembic import op\n"
            f"revision, down_revision, branch_labels, depends_on = '9999', {HEAD!r}, None, None\n"
            "def upgrade():\n"
            "    op.add_column('jobs', sa.Column('newer', sa.String(), server_default='x'))\n"
            f"    op.execute(\"UPDATE compatibility SET oldest = '{oldest}'\")\n"
        )
        upgrade(store.settings, scripts, "head")

    return migrate


def test_code_starts_and_works_on_the_schema_of_newer_code_that_says_it_can(store, settings, newer):
    scope = store.keys.verify(store.tenants.create(Admin(), "acme")[1])
    alice = store.owners.create_user(scope, "alice")
    newer(HEAD)
    publish(store, scope, alice, "voice")  # a process that runs meanwhile goes on
    again = open_store(settings)
    again.prepare()
    again.migrate()  # nothing to do, and nothing undone
    assert publish(again, scope, alice, "voice").full_name == "alice:voice@2"
    with everything(again) as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
        assert connection.execute(text("SELECT DISTINCT newer FROM jobs")).scalars().all() == ["x"]
    again.close()


def test_code_refuses_the_schema_of_newer_code_that_left_it_behind(store, settings, newer):
    newer("9999")
    again = open_store(settings)
    for start in (again.prepare, again.check_migrated, again.migrate):
        with pytest.raises(
            NotMigrated, match=f"schema 9999, which needs code of 9999 at least; this is {HEAD}"
        ):
            start()
    again.close()
