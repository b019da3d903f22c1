"""The two roles of a production database: what each is granted, and that the policies bind it.

The application's role works under the policies of the migrations. The system role looks over all tenants, and is
granted only what looking keys up, claiming, following changes and finding unfinished erasures need, by column; it
can read no dataset's row, no prefix's name and nothing of what a job was asked.
"""

import logging
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import make_url

from prefix_store.errors import NotMigrated, UnsafeRole
from prefix_store.tables import api_keys, metadata

log = logging.getLogger(__name__)

_SCHEMA = ("alembic_version", "compatibility")
_KEY = ", ".join(column.name for column in api_keys.c if column.name != "digest")
APPLICATION: dict[str, tuple[str, ...]] = {
    "tenants": ("SELECT", "INSERT", "UPDATE"),
    "owners": ("SELECT", "INSERT", "UPDATE"),
    "api_keys": (f"SELECT ({_KEY})", "INSERT", "UPDATE", "DELETE"),
    "datasets": ("SELECT", "INSERT", "DELETE"),
    "prefixes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "versions": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "version_sources": ("SELECT", "INSERT", "DELETE"),
    "jobs": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "job_sources": ("SELECT", "INSERT", "DELETE"),
    "job_events": ("SELECT", "INSERT", "DELETE"),
    "checkpoints": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "litter": ("SELECT", "INSERT", "DELETE"),
    "intents": ("SELECT", "INSERT", "DELETE"),
    "erasures": ("SELECT", "INSERT", "UPDATE"),
    "usage": ("SELECT", "INSERT", "UPDATE", "DELETE"),
    "idempotency": ("SELECT", "INSERT", "DELETE"),
    "counters": ("SELECT", "UPDATE"),
    "changes": ("INSERT",),
    "processes": ("SELECT",),
    "installation": ("SELECT", "INSERT"),
    "audit": ("SELECT (seq, mac)", "INSERT"),
}
_CLAIMED = "status, attempt, crashes, company, worker, lease_until, started_at"
SYSTEM: dict[str, tuple[str, ...]] = {
    "api_keys": (
        "SELECT (id, tenant_id, owner_id, digest, grants, revoked_at, last_used_day)",
        "UPDATE (last_used_day)",
    ),
    "owners": ("SELECT (tenant_id, owner_id, name, state)",),
    "tenants": ("SELECT (id, state, joint_training)",),
    "jobs": (
        f"SELECT (tenant_id, owner_id, id, seq, prefix_id, run_at, {_CLAIMED})",
        f"UPDATE ({_CLAIMED})",
    ),
    "job_events": ("SELECT (seq)", "INSERT"),
    "erasures": ("SELECT (id, state, created_at)",),
    "litter": ("SELECT (tenant_id)",),
    "changes": ("SELECT", "DELETE"),
    "counters": ("SELECT",),
    "processes": ("SELECT", "INSERT", "UPDATE", "DELETE"),
}
_FREE = {"counters", "processes"}  # no tenant's rows, so under no policy
_CHECK = """
    SELECT current_user, row_security_active(jobs.oid), pg_has_role(jobs.relowner, 'USAGE'), EXISTS (
        SELECT FROM pg_roles WHERE (rolsuper OR rolbypassrls OR oid = jobs.relowner OR rolname = %s)
        AND pg_has_role(oid, 'MEMBER')
    ) FROM pg_class AS jobs WHERE jobs.oid = to_regclass('jobs')
"""


def check_role(connection: Connection, other_url: str | None) -> None:
    """Make sure that the role of this connection is what the settings count on.

    Args:
        connection: as the role.
        other_url: how the other of the two roles logs in; None if there is one role alone.

    Raises:
        UnsafeRole: one of two that the policies do not bind, or one alone that is not the tables' owner.
    """
    other = None if other_url is None else make_url(other_url).username
    role, bound, owns, more = connection.exec_driver_sql(_CHECK, (other,)).one()
    if other_url is None and not owns:
        raise UnsafeRole(
            f"the database's role {role!r} is not the tables' owner, so it cannot do everything alone; give"
            " PREFIX_SYSTEM_DATABASE_URL too, or the owner in PREFIX_DATABASE_URL"
        )
    if other_url is not None and (more or not bound):
        raise UnsafeRole(
            f"row-level security does not bind the database's role {role!r}: it is the tables' owner, the other of the"
            " two roles, a superuser or has BYPASSRLS, or is a member of one; name a role that is none of these"
        )


def warn_without_vacuum(connection: Connection) -> None:
    """Two roles own no table and so may not vacuum it; where the server does not either, dead rows stay."""
    if connection.exec_driver_sql("SHOW autovacuum").scalar_one() == "off":
        log.warning(
            "the database server's autovacuum is off: dead rows of what is deleted stay until the owner runs VACUUM"
        )


def grant(connection: Connection, application_url: str, system_url: str) -> None:
    """Make the two roles if they are not there, and grant them what they need and nothing else.

    As the tables' owner, within the caller's transaction; to be repeated after every migration.

    Raises:
        NotMigrated: this is not the owner.
        UnsafeRole: a role that is there already, and is one that the policies would not bind.
        ProgrammingError: a role that is not there, and the owner may not make roles.
    """
    if not connection.exec_driver_sql(_CHECK, (None,)).one()[2]:  # else GRANT only warns
        raise NotMigrated(
            "the database's role may not migrate: it is not the tables' owner; give the owner's URL"
        )
    for url, privileges in ((application_url, APPLICATION), (system_url, SYSTEM)):
        _ensure(connection, url)
        role = _quoted(connection, str(make_url(url).username))
        connection.exec_driver_sql("; ".join(_grants(connection, role, privileges)))
    _let_by(connection, str(make_url(system_url).username))


def _ensure(connection: Connection, url: str) -> None:
    parsed = make_url(url)
    name = str(parsed.username)
    asked = "SELECT rolsuper OR rolbypassrls FROM pg_roles WHERE rolname = %s"
    found = connection.exec_driver_sql(asked, (name,)).scalar()
    if found:
        raise UnsafeRole(f"the database's role {name!r} is a superuser or has BYPASSRLS; take that from it")
    if found is None:
        quoted = _quoted(connection, name)
        connection.exec_driver_sql(
            f"CREATE ROLE {quoted} LOGIN{_password(connection, name, parsed.password)}"
        )


def _password(connection: Connection, name: str, password: Any) -> str:
    """Sealed by the client, so that no server's log can hold it."""
    if password is None:
        return ""
    raw: Any = connection.connection.driver_connection
    sealed = raw.pgconn.encrypt_password(str(password).encode(), name.encode(), b"scram-sha-256").decode()
    return f" PASSWORD '{sealed}'"


def _grants(connection: Connection, role: str, privileges: dict[str, tuple[str, ...]]) -> Iterator[str]:
    schema = _quoted(connection, str(connection.exec_driver_sql("SELECT current_schema()").scalar_one()))
    yield f"GRANT USAGE ON SCHEMA {schema} TO {role}"
    yield f"REVOKE ALL ON {', '.join((*metadata.tables, 'alembic_version'))} FROM {role}"
    yield f"GRANT SELECT ON {', '.join(_SCHEMA)} TO {role}"
    for table, given in privileges.items():
        yield f"GRANT {', '.join(given)} ON {table} TO {role}"
    yield f"GRANT USAGE ON SEQUENCE job_events_seq_seq TO {role}"


def _let_by(connection: Connection, role: str) -> None:
    """Policies that let the system role by, for what it is granted; those that are there stay."""
    asked = "SELECT tablename, policyname, roles::text[] FROM pg_policies WHERE schemaname = current_schema()"
    found = {(row[0], row[1]): row[2] for row in connection.exec_driver_sql(asked)}
    quoted, changes = _quoted(connection, role), []
    for table, privileges in SYSTEM.items():
        for command in () if table in _FREE else sorted({given.split()[0] for given in privileges}):
            name = f"system_{command.lower()}"
            holds = "WITH CHECK (true)" if command == "INSERT" else "USING (true)"
            if (table, name) not in found:
                changes.append(f"CREATE POLICY {name} ON {table} FOR {command} TO {quoted} {holds}")
            elif found[table, name] != [role]:  # it had another name
                changes.append(f"ALTER POLICY {name} ON {table} TO {quoted}")
    if changes:
        connection.exec_driver_sql("; ".join(changes))


def _quoted(connection: Connection, name: str) -> str:
    return connection.dialect.identifier_preparer.quote_identifier(name)
