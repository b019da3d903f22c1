"""Statements that several parts share: a first row, a counter under its lock, a change.

Order of locks in every transaction, so that no two wait for each other: tenant, owners, jobs and prefixes,
then the counters `jobs`, `changes` and, last of all, `audit`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, insert, update

from prefix_store.db import CHANGES, db_now, tell
from prefix_store.tables import changes, counters

ChangeKind = Literal["owner_erased", "version_gone", "version_live"]


@dataclass(frozen=True, slots=True)
class Change:
    """One change; `seq` counts in the order of commits, without gaps.

    `version_gone` names a version, the job whose checkpoints are gone, or both: a version and the job that made it;
    or, as a version, a file, which is not to be sent on.
    """

    seq: int
    kind: ChangeKind
    tenant_id: str
    owner_id: str
    version_id: str | None
    job_id: str | None = None


def one(
    connection: Connection, statement: Select[Any], values: Mapping[str, Any] | None = None
) -> Row[Any] | None:
    """Return the first row or None."""
    return connection.execute(statement, values).first()


def next_number(connection: Connection, name: str) -> int:
    """Count a counter up under its row lock, so that numbers are given in the order of commits."""
    statement = update(counters).where(counters.c.name == name).values(value=counters.c.value + 1)
    return int(connection.execute(statement.returning(counters.c.value)).scalar_one())


def change(
    connection: Connection,
    kind: ChangeKind,
    tenant_id: str,
    owner_id: str,
    version_id: str | None = None,
    job_id: str | None = None,
) -> Change:
    """Append to the change feed within the caller's transaction."""
    seq = next_number(connection, "changes")
    ids = {"tenant_id": tenant_id, "owner_id": owner_id, "version_id": version_id, "job_id": job_id}
    connection.execute(insert(changes).values(seq=seq, kind=kind, at=db_now(), **ids))
    tell(connection, CHANGES)
    return Change(seq, kind, tenant_id, owner_id, version_id, job_id)
