"""The database: transactions, what each reaches, and its clock. Knows no tables.

Time that several processes must agree on is the database's: `db_now()` is seconds since the epoch as a
float in both dialects (SQLite's `unixepoch('subsec')` answers NULL on old versions, hence julianday).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Engine, Float, String, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, TimeoutError  # noqa: A004 - SQLAlchemy's own
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from prefix_store.engines import BUSY_MS
from prefix_store.errors import NoRoom, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.reach import EVERY_OWNER, NOWHERE, Reach


class db_now(FunctionElement[float]):  # noqa: N801 - an SQL function, named like one
    """The database's clock, seconds since the epoch."""

    type = Float()
    inherit_cache = True


JOBS: Final = "jobs"
CHANGES: Final = "changes"
_SCRUB_MS = 200
_REACH = (
    "SELECT set_config('prefixserve.tenant', %s, true), set_config('prefixserve.owner', %s, true), "
    "set_config('prefixserve.operator', %s, true)"
)
_SYSTEM = "SELECT set_config('prefixserve.system', 'on', true)"
_OWNER = "SELECT set_config('prefixserve.owner', %s, true)"
_MINE = """
    SELECT relname FROM pg_class WHERE pg_has_role(relowner, 'USAGE')
    AND oid IN (SELECT to_regclass(name) FROM unnest(%s::text[]) AS name)
"""


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


class _Transactions:
    """Transactions on one engine; a writing one takes SQLite's write lock at once, so that it never upgrades."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.is_sqlite = engine.dialect.name == "sqlite"
        self.on_news: Callable[[Iterable[str]], None] | None = None

    @contextmanager
    def _begun(self, setting: str, values: tuple[str, ...], *, write: bool) -> Iterator[Connection]:
        news: set[str] = set()
        engine = self.engine
        if write:
            engine = engine.execution_options(prefix_write=True, prefix_news=news)
        with _reached(), engine.connect() as connection:
            with connection.begin():
                if not self.is_sqlite:
                    connection.exec_driver_sql(setting, values)
                yield connection
                if write:
                    failpoint("database.before_commit")
            if write:
                failpoint("database.after_commit")
        if news and self.on_news is not None:
            self.on_news(news)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


class Database(_Transactions):
    """The application's transactions: each says what it reaches."""

    def read(self, reach: Reach) -> AbstractContextManager[Connection]:
        """Open a transaction that only reads."""
        return self._begun(_REACH, reach.settings(), write=False)

    def write(self, reach: Reach) -> AbstractContextManager[Connection]:
        """Open a transaction that commits at the end and rolls back on any exception."""
        return self._begun(_REACH, reach.settings(), write=True)

    def scrub(self, tables: Iterable[str]) -> bool:
        """Make deleted bytes leave the database's files; False if somebody's transaction is in the way.

        SQLite zeroes what is deleted (secure_delete); its log is emptied into the file and cut to nothing.
        PostgreSQL's dead rows of `tables` are vacuumed: at once where the role owns them, else by its own next round,
        for which migration 0005 asks after every deletion. Its write-ahead log keeps what its archive keeps.
        """
        if not self.is_sqlite:
            self._vacuum(tables)
            return True
        with self.engine.connect() as connection:
            raw: Any = connection.connection.driver_connection
            raw.execute(f"PRAGMA busy_timeout={_SCRUB_MS}")  # it holds off all writers while it waits
            try:
                busy, _, _ = raw.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            finally:
                raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")
            return bool(busy == 0)

    def _vacuum(self, tables: Iterable[str]) -> None:
        waits = ("statement_timeout", "lock_timeout")
        with self.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            mine = sorted(connection.exec_driver_sql(_MINE, (list(tables),)).scalars())
            if not mine:
                return
            try:
                for wait in waits:
                    connection.exec_driver_sql(f"SET {wait} = 0")
                connection.exec_driver_sql(f"VACUUM {', '.join(mine)}")
            finally:
                for wait in waits:
                    connection.exec_driver_sql(f"RESET {wait}")


class SystemDatabase(_Transactions):
    """Transactions over all tenants, by the role that may little else: no route holds one.

    Where one role does everything, it is the same engine, and the tables' owner says by a setting that it means all.
    """

    def read(self) -> AbstractContextManager[Connection]:
        """Open a transaction that only reads."""
        return self._begun(_SYSTEM, (), write=False)

    def write(self) -> AbstractContextManager[Connection]:
        """Open a transaction that commits at the end and rolls back on any exception."""
        return self._begun(_SYSTEM, (), write=True)


@contextmanager
def of_all_owners(connection: Connection, reach: Reach) -> Iterator[None]:
    """Within the block the transaction reaches all owners of its tenant: to count a quota that they share."""
    widen(connection)
    yield
    if connection.dialect.name != "sqlite":  # whatever is raised ends the transaction
        connection.exec_driver_sql(_OWNER, (reach.settings()[1],))


def widen(connection: Connection) -> None:
    """From here on the transaction reaches all owners of its tenant, since what it does concerns others too."""
    if connection.dialect.name != "sqlite":
        connection.exec_driver_sql(_OWNER, (EVERY_OWNER,))


def tell(connection: Connection, topic: str) -> None:
    """Have the processes that wait for `topic` woken once the caller's transaction has committed."""
    connection.get_execution_options().get("prefix_news", set()).add(topic)


@contextmanager
def _reached() -> Iterator[None]:
    """Tell a database that is away, locked or slow from an error in what was asked of it."""
    try:
        yield
    except (OperationalError, InterfaceError, TimeoutError) as error:
        if _is_full(error):
            raise NoRoom from error
        raise Unavailable("the database does not answer") from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise Unavailable("the database does not answer") from error


def _is_full(error: Exception) -> bool:
    """Whether the database has no room for what was to be written: SQLITE_FULL, PostgreSQL's class 53 `disk_full`."""
    cause = getattr(error, "orig", None)
    return (
        getattr(cause, "sqlite_errorname", None) == "SQLITE_FULL"
        or getattr(cause, "sqlstate", None) == "53100"
    )


def ping(database: Database, system: SystemDatabase) -> None:
    """Raise unless the database answers."""
    with database.read(NOWHERE) as connection:
        connection.execute(text("SELECT 1"))
    if system.engine is not database.engine:
        with system.read() as connection:
            connection.execute(text("SELECT 1"))
