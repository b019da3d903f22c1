"""A request that was sent twice makes one thing: keys are kept in the transaction that makes it."""

from sqlalchemy import Connection, delete, insert, select

from prefix_store.db import db_now
from prefix_store.errors import Conflict
from prefix_store.rows import one
from prefix_store.tables import idempotency


def replayed(
    connection: Connection, tenant_id: str, owner_id: str, key: str | None, request_hash: str
) -> str | None:
    """Return the object that this key made before, or None.

    Raises:
        Conflict: the key was used for another request.
    """
    if key is None:
        return None
    where = (
        idempotency.c.tenant_id == tenant_id,
        idempotency.c.owner_id == owner_id,
        idempotency.c.key == key,
    )
    row = one(connection, select(idempotency).where(*where))
    if row is None:
        return None
    if row.request_hash != request_hash:
        raise Conflict(
            "idempotency_mismatch", "this Idempotency-Key was used for another request", "Idempotency-Key"
        )
    return str(row.object_id)


def remember(
    connection: Connection, tenant_id: str, owner_id: str, key: str | None, request_hash: str, object_id: str
) -> None:
    """Keep what the key made; within the transaction that makes it."""
    if key is not None:
        connection.execute(
            insert(idempotency).values(
                tenant_id=tenant_id,
                owner_id=owner_id,
                key=key,
                request_hash=request_hash,
                object_id=object_id,
                created_at=db_now(),
            )
        )


def forget(connection: Connection, tenant_id: str, object_id: str) -> None:
    """Forget the keys that made an object which is gone, so that a replay makes a new one."""
    mine = (idempotency.c.tenant_id == tenant_id, idempotency.c.object_id == object_id)
    connection.execute(delete(idempotency).where(*mine))


def trim(connection: Connection, tenant_id: str, older_than_seconds: float) -> None:
    """Forget a tenant's keys that nobody will replay any more."""
    old = (idempotency.c.tenant_id == tenant_id, idempotency.c.created_at < db_now() - older_than_seconds)
    connection.execute(delete(idempotency).where(*old))
