"""Copies of a whole database while others use it: SQLite by VACUUM INTO, PostgreSQL by its own pg_dump and pg_restore.

PostgreSQL's copy is of rows alone, as INSERT statements, since COPY cannot be used under forced row-level security
(pg_restore's documentation, --enable-row-security); its schema is made by the migrations.
"""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.pool import NullPool

from prefix_store.db import SystemDatabase
from prefix_store.errors import StoreError
from prefix_store.named_files import whole
from prefix_store.tables import metadata

NAMES: Final = {"sqlite": "store.sqlite3", "postgresql": "store.pgdump"}
_LEFT_OUT = {"compatibility", "processes"}  # the migrations' own; and who served then is of no use
_NO_WAITS = ("lock_timeout", "statement_timeout", "idle_in_transaction_session_timeout")


@contextmanager
def copied(database: SystemDatabase, owner_url: str, target: Path) -> Iterator[Connection]:
    """Copy a database to `target`, mode 0600; within the block a connection sees exactly what was copied.

    Raises:
        StoreError: the role may not read everything, or pg_dump is not there or failed.
    """
    with whole(database):
        pass
    target.unlink(missing_ok=True)
    target.touch(mode=0o600)  # so that nobody else can read it at any moment
    copy = (
        _copied_sqlite(database.engine, target)
        if database.is_sqlite
        else _dumped(database, owner_url, target)
    )
    with copy as connection:
        with target.open("rb") as file:
            os.fsync(file.fileno())
        yield connection


def load(owner_url: str, dump: Path) -> None:
    """Put a dump's rows into the tables of an empty PostgreSQL database, all or none.

    Raises:
        StoreError: pg_restore is not there or failed.
    """
    options = (
        "--data-only",
        "--single-transaction",
        "--exit-on-error",
        "--enable-row-security",
        "--no-owner",
    )
    _run("pg_restore", owner_url, *options, str(dump))


def counts(connection: Connection) -> dict[str, int]:
    """How many rows each table has."""
    tables = [table for name, table in metadata.tables.items() if name not in _LEFT_OUT]
    return {
        table.name: int(connection.execute(select(func.count()).select_from(table)).scalar_one())
        for table in tables
    }


@contextmanager
def _copied_sqlite(engine: Engine, target: Path) -> Iterator[Connection]:
    with engine.connect() as connection:
        raw: Any = connection.connection.driver_connection
        try:
            raw.execute("VACUUM INTO ?", (str(target),))  # which may write into an empty file, and no other
        except sqlite3.Error as error:
            raise StoreError(f"SQLite cannot copy the database: {error}") from error
    with read_only(target) as copy:
        yield copy


@contextmanager
def read_only(path: Path) -> Iterator[Connection]:
    """A connection to a SQLite file that leaves it as it is."""

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    try:
        with engine.connect() as connection:
            yield connection
    finally:
        engine.dispose()


@contextmanager
def _dumped(database: SystemDatabase, owner_url: str, target: Path) -> Iterator[Connection]:
    frozen = database.engine.execution_options(isolation_level="REPEATABLE READ")
    with frozen.connect() as connection, connection.begin():
        for wait in _NO_WAITS:
            connection.exec_driver_sql(f"SET LOCAL {wait} = 0")
        connection.exec_driver_sql("SELECT set_config('prefixserve.system', 'on', true)")
        schema = connection.exec_driver_sql("SELECT quote_ident(current_schema())").scalar_one()
        snapshot = connection.exec_driver_sql("SELECT pg_export_snapshot()").scalar_one()
        tables = [f"--table={schema}.{name}" for name in metadata.tables if name not in _LEFT_OUT]
        form = ("--format=custom", "--data-only", "--rows-per-insert=200", "--enable-row-security")
        _run("pg_dump", owner_url, *form, f"--snapshot={snapshot}", *tables, f"--file={target}")
        yield connection


def _run(program: str, owner_url: str, *arguments: str) -> None:
    """PostgreSQL's own program, as the tables' owner; the password goes by the environment, which `ps` does not show.

    Of what it complains only the first line is told, since the statement that failed, with its rows, follows.
    """
    path = shutil.which(program)
    if path is None:
        raise StoreError(f"{program} is not there; install PostgreSQL's client programs")
    url = make_url(owner_url)
    given = url.query.get("options", "")
    asked = given if isinstance(given, str) else " ".join(given)
    query = {**url.query, "options": f"{asked} -c prefixserve.system=on".strip()}
    place = URL.create(
        "postgresql", url.username, host=url.host, port=url.port, database=url.database, query=query
    )
    environment = dict(os.environ)
    if url.password is not None:
        environment["PGPASSWORD"] = str(url.password)
    # RFC 3986: libpq reads a plus sign as itself.
    uri = place.render_as_string(hide_password=False).replace("+", "%20")
    ended = subprocess.run(  # noqa: S603 - PostgreSQL's program, no shell
        [path, f"--dbname={uri}", *arguments], env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        said = ended.stderr.strip().splitlines() or ["it said nothing"]
        raise StoreError(f"{program} failed: {said[0]}")
