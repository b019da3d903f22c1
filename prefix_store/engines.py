"""Engines: how SQLite and PostgreSQL are connected to, and how long anything may wait. Knows no tables."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url

BUSY_MS = 10_000


@dataclass(frozen=True, slots=True)
class Waits:
    """How many connections one process holds to PostgreSQL, and how long it waits, in seconds.

    Attributes:
        pool_size: connections that stay open.
        pool_overflow: more that are opened when all are in use, and closed again.
        pool: for a connection of the pool.
        connect: for a new connection (libpq counts whole seconds, two at least).
        silence: for a server that acknowledges nothing, before the connection is given up.
        lock: for a row or table that another transaction holds.
        statement: for one statement.
        idle: that the server lets a transaction lie idle, so that a process that was stopped in the middle of one
            does not hold its locks for ever.
    """

    pool_size: int = 10
    pool_overflow: int = 20
    pool: float = 10.0
    connect: float = 5.0
    silence: float = 15.0
    lock: float = 4.0
    statement: float = 5.0
    idle: float = 30.0


def open_engine(url: str, waits: Waits) -> Engine:
    """An engine for `url`; connects to nothing yet."""
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return _sqlite(parsed)
    return create_engine(
        parsed,
        pool_pre_ping=True,
        pool_size=waits.pool_size,
        max_overflow=waits.pool_overflow,
        pool_timeout=waits.pool,
        connect_args=_libpq(parsed, waits),
    )


def _libpq(url: URL, waits: Waits) -> dict[str, Any]:
    """Parameters of libpq; what the URL itself says stays.

    Source: PostgreSQL's documentation, "Parameter Key Words" and "Client Connection Defaults".
    """
    limits = {
        "lock_timeout": waits.lock,
        "statement_timeout": waits.statement,
        "idle_in_transaction_session_timeout": waits.idle,
    }
    options = [f"-c {name}={_milliseconds(seconds)}" for name, seconds in limits.items()]
    given = url.query.get("options", "")
    asked = given if isinstance(given, str) else " ".join(given)
    ours: dict[str, Any] = {
        "connect_timeout": max(2, round(waits.connect)),
        "keepalives_idle": max(
            1, round(waits.silence / 3)
        ),  # silent by then: three probes in the rest of the time
        "keepalives_interval": max(1, round(waits.silence * 2 / 9)),
        "keepalives_count": 3,
        "tcp_user_timeout": _milliseconds(waits.silence),
        "application_name": "prefixserve",
    }
    chosen = {name: value for name, value in ours.items() if name not in url.query}
    return {**chosen, "options": " ".join([*options, "-c synchronous_commit=on", asked]).strip()}


def _milliseconds(seconds: float) -> int:
    return max(1, round(seconds * 1000))  # 0 would be for ever


def _sqlite(url: URL) -> Engine:
    if url.database:
        path = Path(url.database)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
    engine = create_engine(url, connect_args={"timeout": 10}, pool_size=10, max_overflow=20)

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # SQLAlchemy, not the driver, says BEGIN
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
            f"busy_timeout={BUSY_MS}",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        immediate = connection.get_execution_options().get("prefix_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return engine
