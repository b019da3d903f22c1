"""Bring the database to this code's schema, and say whether a schema is one that this code can run on.

A step of its own (`prefixserve migrate`); where one role does everything, starting processes run it too. Several may
start at once: a file lock (SQLite) or an advisory lock (PostgreSQL) lets one do it.

Migrations expand first and contract later, so that the code before runs on the new schema while processes change over:
the table `compatibility` names the oldest revision whose code can.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Connection, delete, select, text
from sqlalchemy.exc import ProgrammingError

from prefix_store.db import Database, SystemDatabase
from prefix_store.engines import open_engine
from prefix_store.errors import NotMigrated, StoreError, Unavailable
from prefix_store.reach import NOWHERE
from prefix_store.roles import check_role, grant, warn_without_vacuum
from prefix_store.settings import StoreSettings
from prefix_store.tables import compatibility, counters

RESTORING: Final = "restoring"  # where the schema's revision stands
_LOCK = 7_305_091_146  # any number that no other program takes on this database
_NO_WAITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


def migrate(settings: StoreSettings) -> None:
    """Run every migration that the database lacks, as the tables' owner; then make and grant the two roles.

    Does nothing to a schema of newer code that this code can run on.

    Raises:
        NotMigrated: the schema is of newer code, and this code cannot run on it; or the role may not do this.
        UnsafeRole: a role that the policies would not bind.
    """
    database = SystemDatabase(open_engine(settings.owner_url, settings.waits))
    try:
        with told_why(), alone(database, settings.data_dir), database.write() as connection:
            if not database.is_sqlite:
                connection.execute(text("; ".join(f"SET LOCAL {wait} = 0" for wait in _NO_WAITS)))
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
                # Who waits for a whole table holds up everybody behind: rather give up, to be tried again.
                connection.execute(
                    text(f"SET LOCAL lock_timeout = {max(1, round(settings.database_lock_seconds * 1000))}")
                )
            if _is_newer(connection):
                return
            _upgrade(connection, "head")
            if settings.two_roles:
                grant(connection, settings.url, settings.system_url)
    except ProgrammingError as error:
        if not isinstance(error.orig, InsufficientPrivilege):
            raise
        why = error.orig.diag.message_primary
        raise NotMigrated(f"the database's role may not migrate: {why}; give the owner's URL") from error
    finally:
        database.close()


def check_migrated(settings: StoreSettings, database: Database, system: SystemDatabase) -> None:
    """Make sure that this code can run on the schema, as the roles that the settings name.

    Raises:
        NotMigrated: older, or newer and no longer for this code.
        Unavailable: no answer, or a login refused; the message says what.
        UnsafeRole: a role that is not what the settings count on.
    """
    head = ScriptDirectory.from_config(_config()).get_current_head()
    try:
        with told_why(), database.read(NOWHERE) as connection:
            current = MigrationContext.configure(connection).get_current_revision()
            if current != head and not _is_newer(connection):
                found = "no schema" if current is None else f"schema {current}"
                raise NotMigrated(
                    f"the database has {found}, this code needs {head}; run `prefixserve migrate`"
                )
            if not database.is_sqlite:
                check_role(connection, settings.system_url if settings.two_roles else None)
        if settings.two_roles:
            with told_why(), system.read() as connection:
                check_role(connection, settings.url)
                warn_without_vacuum(connection)
    except ProgrammingError as error:  # no such table, or none that the role may read
        raise NotMigrated(
            "the database's role may not read its schema, or there is none; run `prefixserve migrate`"
        ) from error


def _is_newer(connection: Connection) -> bool:
    """Whether the schema is one of newer code that this code can run on.

    Raises:
        NotMigrated: newer, and this code cannot.
    """
    scripts = ScriptDirectory.from_config(_config())
    known = {script.revision for script in scripts.walk_revisions()}
    current = MigrationContext.configure(connection).get_current_revision()
    if current is None or current in known:
        return False
    if current == RESTORING:
        raise NotMigrated(
            "a backup is being restored here; if that was cut short, empty the store and restore again"
        )
    oldest = connection.execute(select(compatibility.c.oldest)).scalar_one()
    if oldest not in known:
        head = scripts.get_current_head()
        raise NotMigrated(
            f"the database has schema {current}, which needs code of {oldest} at least; this is {head}: update it"
        )
    return True


@contextmanager
def told_why() -> Iterator[None]:
    """At a start the operator is told what the server or the network said; no password stands in it."""
    try:
        yield
    except Unavailable as error:
        said = getattr(error.__cause__, "orig", None)
        if said is None:
            raise
        raise Unavailable(f"{error}: {str(said).strip().splitlines()[-1]}") from error


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def start_restore(database: SystemDatabase, revision: str) -> None:
    """Make the empty schema of a backup in an empty PostgreSQL database, marked so that no process starts on it.

    Raises:
        StoreError: the database is not empty.
        NotMigrated: the backup is of newer code.
    """
    with told_why(), database.write() as connection:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        if connection.execute(text("SELECT to_regclass('alembic_version')")).scalar() is not None:
            raise StoreError("the database is not empty; name one that was made anew")
        _know(revision)
        _upgrade(connection, revision)
        connection.execute(delete(counters))  # what migrations began to count; the backup has its own
        _mark(connection, RESTORING)


def migrate_restored(database: SystemDatabase, settings: StoreSettings, revision: str | None) -> None:
    """Bring a restored schema up to this code's, still marked; make and grant the two roles.

    Args:
        database: as the tables' owner.
        settings: name the roles.
        revision: the schema's, where it is marked already.

    Raises:
        NotMigrated: the backup is of newer code.
    """
    with told_why(), database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("; ".join(f"SET LOCAL {wait} = 0" for wait in _NO_WAITS)))
        if revision is not None:
            _mark(connection, revision)
        _know(str(MigrationContext.configure(connection).get_current_revision()))
        _upgrade(connection, "head")
        if settings.two_roles:
            grant(connection, settings.url, settings.system_url)
        _mark(connection, RESTORING)


def is_being_restored(connection: Connection) -> bool:
    """Whether a backup is being put into this database, or was and did not come to its end."""
    return MigrationContext.configure(connection).get_current_revision() == RESTORING


def finish_restore(database: SystemDatabase) -> None:
    """Take the mark away: processes may start."""
    with database.write() as connection:
        _mark(connection, str(ScriptDirectory.from_config(_config()).get_current_head()))


def _know(revision: str) -> None:
    if revision not in {
        script.revision for script in ScriptDirectory.from_config(_config()).walk_revisions()
    }:
        raise NotMigrated(f"the backup has schema {revision}, which this code does not know: update it")


def _upgrade(connection: Connection, revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def _mark(connection: Connection, revision: str) -> None:
    connection.execute(text("UPDATE alembic_version SET version_num = :revision"), {"revision": revision})


@contextmanager
def alone(database: SystemDatabase, data_dir: Path) -> Iterator[None]:
    """Within the block nobody else migrates or restores this SQLite database; PostgreSQL has locks of its own."""
    if not database.is_sqlite:
        yield
        return
    folder = data_dir / "data"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
