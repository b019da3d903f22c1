"""Bring the database to this code's schema. A step of its own; starting processes run it too.

Several processes may start at once: a file lock (SQLite) or an advisory lock (PostgreSQL) lets one do it.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import text

from prefix_store.db import Database
from prefix_store.errors import NotMigrated

_LOCK = 7_305_091_146  # any number that no other program takes on this database


def migrate(database: Database, data_dir: Path) -> None:
    """Run every migration that the database lacks."""
    config = _config()
    with _alone(database, data_dir), database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL lock_timeout = 0; SET LOCAL statement_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def check_migrated(database: Database) -> None:
    """Raise NotMigrated unless the schema is this code's."""
    head = ScriptDirectory.from_config(_config()).get_current_head()
    with database.read() as connection:
        if MigrationContext.configure(connection).get_current_revision() != head:
            raise NotMigrated("the database has another schema than this code; run `prefixserve migrate`")


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


@contextmanager
def _alone(database: Database, data_dir: Path) -> Iterator[None]:
    if not database.is_sqlite:
        yield
        return
    folder = data_dir / "data"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / "migrate.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
