"""The audit log: append-only, each entry bound to the one before by an HMAC. Ids only, never content.

An entry is written in the transaction that it describes, as its last statement. The key is derived from the
pepper, so whoever can write to the database alone cannot forge the chain.
"""

import hashlib
import hmac
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select
from sqlalchemy.exc import ProgrammingError

from prefix_store.db import SystemDatabase, db_now
from prefix_store.errors import StoreError, Tampered
from prefix_store.ledger import DELETIONS, Ledger
from prefix_store.rows import next_number
from prefix_store.tables import audit, counters


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """Who (key) did what (action) to which object, by the database's clock."""

    seq: int
    at: float
    tenant_id: str
    key_id: str
    action: str
    object_id: str


def _entry(row: Row[Any]) -> AuditEntry:
    return AuditEntry(row.seq, row.at, row.tenant_id, row.key_id, row.action, row.object_id)


def _now(connection: Connection) -> float:
    return float(connection.execute(select(db_now())).scalar_one())


class Audit:
    """Record; what is deleted also stands in the ledger, if there is one, before the caller's transaction commits."""

    def __init__(self, pepper: bytes, ledger: Ledger | None = None) -> None:
        self._ledger = ledger
        self._key = hashlib.sha256(b"prefixserve audit" + pepper).digest()

    def record(
        self, connection: Connection, tenant_id: str, key_id: str, action: str, object_id: str
    ) -> None:
        """Append an entry within the caller's transaction; for the store's own parts."""
        seq = next_number(connection, "audit")
        at = _now(connection)
        last = connection.execute(select(audit.c.mac).where(audit.c.seq == seq - 1)).scalar()
        entry = AuditEntry(seq, at, tenant_id, key_id, action, object_id)
        values = {"at": at, "tenant_id": tenant_id, "key_id": key_id, "action": action}
        mac = self._mac(last or "", entry)
        connection.execute(insert(audit).values(seq=seq, object_id=object_id, mac=mac, **values))
        if action in DELETIONS:
            self._remember(action, tenant_id, object_id, at)

    def foresee(self, connection: Connection, tenant_id: str, action: str, object_id: str) -> None:
        """Have a restore of an older backup do `action` to what is there by then; in the ledger alone."""
        self._remember(action, tenant_id, object_id, _now(connection))

    def began(self, connection: Connection) -> bool | None:
        """Whether the log's first entry was sealed with this pepper; None if there is no entry. For the tables' owner."""
        row = connection.execute(select(audit).where(audit.c.seq == 1)).first()
        return None if row is None else hmac.compare_digest(self._mac("", _entry(row)), row.mac)

    def _remember(self, action: str, tenant_id: str, object_id: str, at: float) -> None:
        if self._ledger is not None:
            self._ledger.append(action, tenant_id, object_id, at)

    def _mac(self, last: str, entry: AuditEntry) -> str:
        parts = (entry.seq, repr(entry.at), entry.tenant_id, entry.key_id, entry.action, entry.object_id)
        text = "\x1f".join([last, *map(str, parts)])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()


class AuditLog(Audit):
    """List, verify: over all tenants, for the operator, by the role that the tables belong to."""

    def __init__(self, database: SystemDatabase, pepper: bytes) -> None:
        super().__init__(pepper)
        self._database = database

    def list(self, tenant_id: str | None = None, after: int = 0, limit: int = 1000) -> Sequence[AuditEntry]:
        """Entries after a number, oldest first; for the operator."""
        statement = select(audit).where(audit.c.seq > after).order_by(audit.c.seq).limit(limit)
        if tenant_id is not None:
            statement = statement.where(audit.c.tenant_id == tenant_id)
        with self._reading() as connection:
            return [_entry(row) for row in connection.execute(statement)]

    def verify(self) -> int:
        """Return the number of entries.

        A log cut at its end together with its counter is not noticed; keep the number elsewhere for that.

        Raises:
            Tampered: an entry was changed, removed or put in.
        """
        last, count = "", 0
        with self._reading() as connection:
            for row in connection.execute(select(audit).order_by(audit.c.seq)):
                count += 1
                if row.seq != count or not hmac.compare_digest(self._mac(last, _entry(row)), row.mac):
                    raise Tampered(count)
                last = row.mac
            written = select(counters.c.value).where(counters.c.name == "audit")
            if connection.execute(written).scalar_one() != count:
                raise Tampered(count + 1)
        return count

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        try:
            with self._database.read() as connection:
                yield connection
        except ProgrammingError as error:
            raise StoreError(
                "the log is the tables' owner's to read; give PREFIX_OWNER_DATABASE_URL"
            ) from error
