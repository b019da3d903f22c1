"""The database: engine, pragmas, transactions and its clock. Knows no tables.

Time that several processes must agree on is the database's: `db_now()` is seconds since the epoch as a
float in both dialects (SQLite's `unixepoch('subsec')` answers NULL on old versions, hence julianday).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Connection, Engine, Float, String, create_engine, event, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import InterfaceError, OperationalError, TimeoutError  # noqa: A004 - SQLAlchemy's own
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from prefix_store.errors import Unavailable


class db_now(FunctionElement[float]):  # noqa: N801 - an SQL function, named like one
    """The database's clock, seconds since the epoch."""

    type = Float()
    inherit_cache = True


JOBS: Final = "jobs"
CHANGES: Final = "changes"
_BUSY_MS = 10_000
_SCRUB_MS = 200


@compiles(db_now, "sqlite")
def _sqlite_now(*_: Any, **__: Any) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


@compiles(db_now, "postgresql")
def _postgresql_now(*_: Any, **__: Any) -> str:
    return "extract(epoch from clock_timestamp())::float8"


class db_today(FunctionElement[str]):  # noqa: N801 - an SQL function, named like one
    """The database's UTC day, YYYY-MM-DD."""

    type = String()
    inherit_cache = True


@compiles(db_today, "sqlite")
def _sqlite_today(*_: Any, **__: Any) -> str:
    return "strftime('%Y-%m-%d', 'now')"


@compiles(db_today, "postgresql")
def _postgresql_today(*_: Any, **__: Any) -> str:
    return "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD')"


class Database:
    """Transactions on one engine; `write` takes SQLite's write lock at once, so it never upgrades."""

    def __init__(self, url: str) -> None:
        self.engine = _engine(url)
        self.is_sqlite = self.engine.dialect.name == "sqlite"
        self.on_news: Callable[[Iterable[str]], None] | None = None

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads."""
        with _reached(), self.engine.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that commits at the end and rolls back on any exception.

        What `tell` was called with goes to `on_news` after the commit.
        """
        news: set[str] = set()
        engine = self.engine.execution_options(prefix_write=True, prefix_news=news)
        with _reached(), engine.connect() as connection, connection.begin():
            yield connection
        if news and self.on_news is not None:
            self.on_news(news)

    def scrub(self, tables: Iterable[str]) -> bool:
        """Make deleted bytes leave the database's files; False if somebody's transaction is in the way.

        SQLite zeroes what is deleted (secure_delete); its log is emptied into the file and cut to nothing.
        PostgreSQL's dead rows of `tables` are vacuumed; its own write-ahead log keeps what its archive keeps.
        """
        if not self.is_sqlite:
            waits = ("statement_timeout", "lock_timeout")
            with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                try:
                    for wait in waits:
                        connection.exec_driver_sql(f"SET {wait} = 0")
                    connection.exec_driver_sql(f"VACUUM {', '.join(tables)}")
                finally:
                    for wait in waits:
                        connection.exec_driver_sql(f"RESET {wait}")
            return True
        with self.engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.execute(f"PRAGMA busy_timeout={_SCRUB_MS}")  # it holds off all writers while it waits
            try:
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            return bool(busy == 0)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def tell(connection: Connection, topic: str) -> None:
    """Have the processes that wait for `topic` woken once the caller's transaction has committed."""
    connection.get_execution_options().get("prefix_news", set()).add(topic)


@contextmanager
def _reached() -> Iterator[None]:
    """Tell a database that is away, locked or slow from an error in what was asked of it."""
    try:
        yield
    except (OperationalError, InterfaceError, TimeoutError) as error:
        raise Unavailable("the database does not answer") from error


def _engine(url: str) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        waits = "-c lock_timeout=4000 -c statement_timeout=5000 -c synchronous_commit=on"
        return create_engine(
            parsed, pool_pre_ping=True, pool_size=10, max_overflow=20, connect_args={"options": waits}
        )
    if parsed.database:
        path = Path(parsed.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    engine = create_engine(parsed, connect_args={"timeout": 10}, pool_size=10, max_overflow=20)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy, not the driver, says BEGIN
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            f"busy_timeout={_BUSY_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("prefix_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine


def ping(database: Database) -> None:
    """Raise unless the database answers."""
    with database.read() as connection:
        connection.execute(text("SELECT 1"))
