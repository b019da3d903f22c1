"""Erasing a user, a task or a tenant: `purging -> done`, resumable at any line.

From the commit of `begin` every resolve fails and no job of the owner can publish. What was learned from
an owner lies in its own prefixes and in task versions that name it as a source; the base is frozen, so
removing these removes everything. An erasure stays `purging` while a worker may still hold the owner's data.
"""

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Literal

from sqlalchemy import Connection, Row, delete, insert, select, update

from prefix_store.checkpoints import tell_gone
from prefix_store.core import Core
from prefix_store.db import db_now, widen
from prefix_store.errors import NotFound, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.job_rows import cancel_jobs
from prefix_store.litter import clear, waited_for
from prefix_store.misses import Misses
from prefix_store.names import new_id
from prefix_store.owners import find_owner, lock_owners, lock_tenant
from prefix_store.purged_rows import fold_usage, purge_rows, touching
from prefix_store.reach import OPERATOR, Reach
from prefix_store.retire import remove_versions
from prefix_store.rows import Change, change, one
from prefix_store.scope import Admin, Scope
from prefix_store.tables import (
    LIVE,
    api_keys,
    erasures,
    idempotency,
    jobs,
    metadata,
    owners,
    tenants,
    usage,
    version_sources,
)

log = logging.getLogger(__name__)

_BATCH = 100  # owners of a tenant whose rows go in one transaction
REASON = "Fine-tuning job cancelled: an owner of its data was erased"


@dataclass(frozen=True, slots=True)
class Erasure:
    """One erasure; `seq` is the change that serving processes must have acted on (`feed.acked`)."""

    id: str
    kind: Literal["user", "task", "tenant"]
    state: Literal["purging", "done"]
    seq: int
    created_at: float
    done_at: float | None


def _erasure(row: Row[Any]) -> Erasure:
    return Erasure(row.id, row.kind, row.state, row.seq, row.created_at, row.done_at)


class Erasures:
    """Begin, purge, look at."""

    def __init__(self, core: Core) -> None:
        self._core = core
        # Open erasure -> its owners of whom nothing is left nor can come any more: not looked at again by this process.
        self._gone: dict[str, set[str]] = {}

    def begin(self, scope: Scope, label: str) -> Erasure:
        """Tombstone an owner (`alice`, `task:e2e`) in one transaction.

        When this returns, its keys are revoked, its jobs and those that learn from its files cancelled, its
        prefixes unresolvable, its name free, and task versions that learned from its files are gone.

        Raises:
            NotFound: no such owner for this scope.
        """
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(
                connection, scope.tenant_id
            )  # one erasure at a time: several may reach the same versions
            return self._begin(connection, scope, find_owner(connection, scope, label))

    def begin_owner(self, scope: Scope, owner_id: str) -> Erasure:
        """The same by the owner's id, in a tenant-wide scope; for a restore."""
        mine = (owners.c.tenant_id == scope.tenant_id, owners.c.owner_id == owner_id, owners.c.state == LIVE)
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(connection, scope.tenant_id)
            found = one(connection, select(owners).where(*mine))
            if found is None:
                raise NotFound("owner", owner_id)
            return self._begin(connection, scope, found)

    def _begin(self, connection: Connection, scope: Scope, found: Row[Any]) -> Erasure:
        ids = (found.tenant_id, found.owner_id)
        widen(connection)  # tasks may have learned from its files
        lock_owners(connection, ids[0], [ids[1]])
        ended = _tombstone(connection, *ids)
        remove_versions(connection, ids[0], _learned_elsewhere(connection, *ids))
        tell_gone(connection, ended)
        erasure = _insert(connection, change(connection, "owner_erased", *ids), found.kind)
        self._core.audit.record(connection, ids[0], scope.key_id, f"{found.kind}.erased", ids[1])
        failpoint("erase.after_tombstone")
        return erasure

    def begin_tenant(self, admin: Admin, tenant_id: str) -> Erasure:
        """Tombstone a tenant with all its owners and keys; NotFound if there is none.

        One change tells it, of the owner "", which means the whole tenant: it ends every answer of every owner and
        forgets every prompt, so the owners are not told one by one. Everybody else's deletions need the feed's counter.
        """
        with self._core.database.write(Reach(tenant_id)) as connection:
            live = (tenants.c.id == tenant_id, tenants.c.state == LIVE)
            if connection.execute(update(tenants).where(*live).values(state="erased", name="")).rowcount != 1:
                raise NotFound("tenant", tenant_id)
            mine = (owners.c.tenant_id == tenant_id, owners.c.state == LIVE)
            # Held in the order in which everybody holds several, so that no two wait for each other.
            held = select(owners.c.owner_id).where(*mine).order_by(owners.c.owner_id)
            connection.execute(held.with_for_update(key_share=True)).all()
            connection.execute(update(owners).where(*mine).values(state="erased", name=""))
            dead = update(api_keys).where(api_keys.c.tenant_id == tenant_id, api_keys.c.revoked_at.is_(None))
            connection.execute(dead.values(revoked_at=db_now()))
            cancel_jobs(connection, jobs.c.tenant_id == tenant_id, REASON)
            erasure = _insert(connection, change(connection, "owner_erased", tenant_id, ""), "tenant")
            self._core.audit.record(connection, tenant_id, admin.key_id, "tenant.erased", tenant_id)
            return erasure

    def get(self, scope: Scope | Admin, erasure_id: str) -> Erasure:
        """Return an erasure of the scope's tenant; NotFound else. A user's key reaches none."""
        where = [erasures.c.id == erasure_id]
        if isinstance(scope, Scope):
            if scope.user is not None:
                raise NotFound("erasure", erasure_id)
            where.append(erasures.c.tenant_id == scope.tenant_id)
        reach = scope.reach if isinstance(scope, Scope) else OPERATOR
        with self._core.database.read(reach) as connection:
            row = one(connection, select(erasures).where(*where))
        if row is None:
            raise NotFound("erasure", erasure_id)
        return _erasure(row)

    def purge(self, erasure_id: str) -> Erasure:
        """Remove files and rows; `done` once no worker can hold the owner's data, none can come and the bytes are gone.

        Idempotent, and may be cut short anywhere. While Redis is away it is not done before what lay there is gone.

        Raises:
            Unavailable: files or database do not answer; it is still open.
        """
        row = self._row(erasure_id)
        if row.state != "done" and self._removed(row) and self._scrubbed():
            row = self._done(row)
        if row.state == "done":
            self._gone.pop(row.id, None)
        return _erasure(row)

    def _row(self, erasure_id: str) -> Row[Any]:
        with self._core.database.read(OPERATOR) as connection:
            return connection.execute(select(erasures).where(erasures.c.id == erasure_id)).one()

    def _removed(self, row: Row[Any], turn_seconds: float = inf) -> bool:
        """Remove its rows and files; whether no worker may still hold data of it, and no file of it may still come.

        An owner whose files cannot be removed holds up no other: each that is gone is known to be at once, so that what
        fails costs only itself. After `turn_seconds` of removing files the rest is left for another time.

        Raises:
            Unavailable: files or database do not answer.
            OSError: the same of a disk.
        """
        with self._core.database.read(Reach(row.tenant_id)) as connection:
            targets = _targets(connection, row)
        gone = self._gone.setdefault(row.id, set())
        left = [owner_id for owner_id in targets if owner_id not in gone]
        batches = [left[at : at + _BATCH] for at in range(0, len(left), _BATCH)]
        free = [batch for batch in batches if self._rows_removed(row, batch)]
        if row.kind == "tenant":
            self._tenant_rows_removed(row)
        failpoint("erase.after_rows")
        misses = Misses(self._core.blobs.away)
        with misses.passed():
            self._clear_for(row.tenant_id, targets)
        ended = {owner_id for batch in free for owner_id in batch}
        until = time.monotonic() + turn_seconds  # from here, so that each turn comes to some files
        # In another order each time: those that fail, some for seconds each, are not always in front of the others.
        for owner_id in random.sample(left, len(left)):
            if misses.away:
                break
            with misses.passed():
                self._core.blobs.delete_owner(row.tenant_id, owner_id)
                if owner_id in ended:
                    gone.add(owner_id)
            if time.monotonic() >= until:
                break
        failpoint("erase.after_files")
        misses.tell()
        return gone.issuperset(left)

    def _clear_for(self, tenant_id: str, owner_ids: Sequence[str]) -> None:
        """Remove noted files; only one that an erasure of these owners waits for makes it fail."""
        try:
            clear(self._core, tenant_id, owner_ids)
        except (Unavailable, OSError):
            if waited_for(self._core, tenant_id, owner_ids):
                raise
            log.warning("noted files are removed later")

    def _rows_removed(self, row: Row[Any], owner_ids: Sequence[str]) -> bool:
        """Remove rows of some owners in a transaction of their own: what is held meanwhile, others wait for."""
        late = self._core.blobs.files.late_seconds
        with self._core.database.write(Reach(row.tenant_id)) as connection:
            # One process at a time, of a user's erasure and its tenant's too: two at it would hold the same rows in
            # different orders, and totals must not come back behind a tenant's end.
            held = select(tenants.c.state == LIVE).where(tenants.c.id == row.tenant_id).with_for_update()
            if connection.execute(held).scalar():
                fold_usage(connection, row.tenant_id, owner_ids[0])
            return not purge_rows(connection, row.tenant_id, owner_ids, late)

    def _tenant_rows_removed(self, row: Row[Any]) -> None:
        with self._core.database.write(Reach(row.tenant_id)) as connection:
            connection.execute(select(tenants.c.id).where(tenants.c.id == row.tenant_id).with_for_update())
            for table in (api_keys, usage, idempotency):  # some are of no owner
                connection.execute(delete(table).where(table.c.tenant_id == row.tenant_id))

    def _scrubbed(self) -> bool:
        """Whether nothing of all that was removed before lies in the database's files or in Redis any more."""
        return self._core.database.scrub(metadata.tables) and self._core.blobs.forgotten()

    def clear(self, scope: Scope) -> bool:
        """Remove the files whose rows the tenant has deleted; whether nothing of them is left, in Redis neither.

        Raises:
            Unavailable: files or database do not answer; what is left stays noted.
        """
        clear(self._core, scope.tenant_id)
        return self._core.blobs.forgotten()

    def _done(self, row: Row[Any]) -> Row[Any]:
        failpoint("erase.after_scrub")
        mine = (erasures.c.id == row.id, erasures.c.state != "done")
        with self._core.database.write(Reach(row.tenant_id)) as connection:
            ended = update(erasures).where(*mine).values(state="done", done_at=db_now())
            if connection.execute(ended).rowcount == 1:
                self._core.audit.record(connection, row.tenant_id, "store", "erasure.done", row.id)
            failpoint("erase.certified")
            return connection.execute(select(erasures).where(erasures.c.id == row.id)).one()


def _insert(connection: Connection, told: Change, kind: str) -> Erasure:
    ids = {"id": new_id("era"), "tenant_id": told.tenant_id, "owner_id": told.owner_id or None}
    values = {"kind": kind, "state": "purging", "seq": told.seq, "created_at": db_now()}
    return _erasure(connection.execute(insert(erasures).values(**ids, **values).returning(erasures)).one())


def _tombstone(connection: Connection, tenant_id: str, owner_id: str) -> Sequence[Row[Any]]:
    """Hide an owner; return the jobs that this ended."""
    mine = (owners.c.tenant_id == tenant_id, owners.c.owner_id == owner_id)
    connection.execute(update(owners).where(*mine).values(state="erased", name=""))
    keys = (api_keys.c.tenant_id == tenant_id, api_keys.c.owner_id == owner_id)
    connection.execute(update(api_keys).where(*keys).values(revoked_at=db_now()))
    return cancel_jobs(connection, touching(tenant_id, [owner_id]), REASON)


def _learned_elsewhere(connection: Connection, tenant_id: str, owner_id: str) -> Sequence[str]:
    learned = select(version_sources.c.version_id).where(
        version_sources.c.tenant_id == tenant_id,
        version_sources.c.source_owner_id == owner_id,
        version_sources.c.owner_id != owner_id,
    )
    return connection.execute(learned).scalars().all()


def _targets(connection: Connection, row: Row[Any]) -> Sequence[str]:
    if row.owner_id is not None:
        return [row.owner_id]
    mine = select(owners.c.owner_id).where(owners.c.tenant_id == row.tenant_id)
    return connection.execute(mine.order_by(owners.c.owner_id)).scalars().all()
