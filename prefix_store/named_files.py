"""Which sealed files rows name, over all tenants: for whoever looks at the whole store. Reads ids and checksums alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, select
from sqlalchemy.exc import ProgrammingError

from prefix_store.crypto import Place
from prefix_store.db import SystemDatabase
from prefix_store.errors import StoreError
from prefix_store.tables import LIVE, audit, checkpoints, datasets, litter, owners, versions

CHECKPOINT: Final = "checkpoint"
NAMING: Final = (
    ("dataset", datasets.c.id, datasets.c.sha256),
    ("version", versions.c.version_id, versions.c.sha256),
    (CHECKPOINT, checkpoints.c.object_id, checkpoints.c.sha256),
    (CHECKPOINT, checkpoints.c.prefix_object_id, checkpoints.c.prefix_sha256),
)


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that a row of that kind names; `sha256` is of its plaintext, in hex."""

    kind: str
    sha256: str


@contextmanager
def whole(database: SystemDatabase) -> Iterator[Connection]:
    """A transaction that reads every tenant's rows.

    Raises:
        StoreError: the role is not the tables' owner, so that policies would hide rows from it.
    """
    try:
        with database.read() as connection:
            connection.execute(select(audit.c.at).limit(1)).all()  # which the owner alone may read
            yield connection
    except ProgrammingError as error:
        raise StoreError(
            "the whole store is the tables' owner's to read; give PREFIX_OWNER_DATABASE_URL"
        ) from error


def named_files(connection: Connection) -> dict[Place, NamedFile]:
    """Every file that a row names."""
    found = {}
    for kind, column, sha256 in NAMING:
        of = column.table.c
        for row in connection.execute(select(of.tenant_id, of.owner_id, column, sha256)):
            if row[2]:
                found[Place(*row[:3])] = NamedFile(kind, row[3])
    return found


def living_owners(connection: Connection) -> set[tuple[str, str]]:
    """Tenant and owner of those whose files may still come."""
    alive = select(owners.c.tenant_id, owners.c.owner_id).where(owners.c.state == LIVE)
    return {(row[0], row[1]) for row in connection.execute(alive)}


def noted_files(connection: Connection) -> set[Place]:
    """Files whose removal is noted and not yet done."""
    return {Place(*row) for row in connection.execute(select(litter))}
