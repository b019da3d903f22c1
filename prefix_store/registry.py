"""Prefixes, their immutable versions and the live pointer.

The pointer is read from the database for every request and never cached; bytes are immutable and may be
cached by version id. So a version that was deleted or rolled back cannot be served by a cold path.

A user's key resolves its own prefixes and, to generate, the tenant's task prefixes, which it also sees
listed. It can neither change these nor see their files or jobs; everything else of others does not exist
for it.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from sqlalchemy import Connection, Row, true, update

from prefix_store.checkpoints import resolve_job, standing_checkpoint, tell_gone
from prefix_store.core import Core
from prefix_store.db import db_now
from prefix_store.errors import Conflict, Corrupt, NoLiveVersion, NotFound
from prefix_store.failpoints import failpoint
from prefix_store.idempotency import remember, replayed
from prefix_store.job_rows import cancel_jobs
from prefix_store.litter import clear_soon
from prefix_store.names import ModelName, parse_model
from prefix_store.owners import lock_owners
from prefix_store.retire import remove_versions
from prefix_store.rows import Change, change, one
from prefix_store.scope import Scope
from prefix_store.tables import jobs, prefixes, versions
from prefix_store.version_rows import (
    PrefixView,
    Resolved,
    Version,
    joined,
    listed,
    name_values,
    named,
    paged,
    resolved_of,
    standing,
    version_of,
    view_of,
)


class Registry:
    """Look names up, list, promote, roll back, delete."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def resolve(self, scope: Scope, name: str) -> Resolved:
        """Return the version that a name (`alice:voice`, `alice:voice@3`) means now, by one indexed read.

        A job's name (`alice:voice@ftjob-...`) means its last checkpoint while it is open, else what it became.

        Raises:
            NoCheckpoint: the job is there, but there is nothing to be called by this name.
            NoLiveVersion: the prefix is there, but a candidate waits to be promoted.
            NotFound: absent, erased, another's, or no prefix's name.
        """
        parsed = parse_model(name)
        if parsed is None:
            raise NotFound("model", name)
        if parsed.job is not None:
            with self._core.database.read(scope.reach) as connection:
                return resolve_job(connection, scope, name, parsed)
        which: Literal["live", "number"] = "live" if parsed.version is None else "number"
        statement = named(of_user=scope.user is not None, tasks_too=True, which=which)
        with self._core.database.read(scope.reach) as connection:
            row = one(connection, statement, name_values(scope, parsed))
        if row is None:
            raise NotFound("model", name)
        if row.version_id is not None:
            return resolved_of(row)
        if parsed.version is None and row.has_versions:
            raise NoLiveVersion("model", name, "; a candidate waits to be promoted")
        raise NotFound("model", name)

    def read(self, resolved: Resolved) -> bytes:
        """Return the bytes of a version or checkpoint; checks that it was not deleted since it was resolved.

        Raises:
            NotFound: deleted or erased; of a checkpoint also: the job has ended or kept another.
            Corrupt: the file fails its seal or checksum.
            Unavailable: the object storage does not answer.
        """
        if not self._stands(resolved):
            raise NotFound("model", resolved.full_name)
        try:
            return self._core.blobs.read(
                resolved.place, resolved.sha256, stands=lambda: self._stands(resolved)
            )
        except Corrupt:
            if self._stands(resolved):
                raise
            raise NotFound("model", resolved.full_name) from None  # deleted while it was read

    def list(self, scope: Scope, after: str | None = None, limit: int | None = None) -> Sequence[PrefixView]:
        """Prefixes that `scope` reaches and that have a version, by name, behind the prefix `after`.

        Raises:
            NotFound: `after` is none of them.
        """
        with self._core.database.read(scope.reach) as connection:
            name = None if after is None else self._listed_name(connection, scope, after)
            page = prefixes.c.prefix_id.in_(paged(scope, name, limit))
            rows = connection.execute(listed(true(), scope).where(page)).all()
        grouped: dict[str, list[Row[Any]]] = {}
        for row in rows:
            grouped.setdefault(row.p_prefix_id, []).append(row)
        return [view_of(group) for group in grouped.values()]

    def live(self, scope: Scope) -> Sequence[Version]:
        """The live versions of the prefixes of `list`, in its order."""
        which = versions.c.version_id == prefixes.c.live_version_id
        with self._core.database.read(scope.reach) as connection:
            return [version_of(row) for row in connection.execute(listed(which, scope))]

    def get(self, scope: Scope, name: str) -> PrefixView:
        """Return one prefix by its bare name; NotFound if absent, another's, or without any version."""
        with self._core.database.read(scope.reach) as connection:
            rows = self._rows(connection, scope, name, tasks_too=True)
        if rows[0].version_id is None:
            raise NotFound("model", name)
        return view_of(rows)

    def versions(self, scope: Scope, name: str) -> Sequence[Version]:
        """Return the versions of a prefix, newest first; NotFound as in `get`."""
        return self.get(scope, name).versions

    def promote(self, scope: Scope, name: str, number: int) -> Version:
        """Make version `number` live.

        Raises:
            NotFound: no such prefix or version for this scope.
        """
        with self._core.database.write(scope.reach) as connection:
            row = _numbered(self._locked(connection, scope, name), name, number)
            return self._point(connection, scope, row, "version.promoted")

    def rollback(self, scope: Scope, name: str, idempotency_key: str | None = None) -> Version:
        """Make the newest older version live that was live before; with a key that was used so before, do nothing.

        Raises:
            NotFound: no such prefix for this scope; or the version that the key went back to is gone.
            Conflict: there is no older version that was live; idempotency_mismatch.
        """
        request = hashlib.sha256(f"rollback {name}".encode()).hexdigest()
        with self._core.database.write(scope.reach) as connection:
            locked = self._locked(connection, scope, name)
            ids = (locked[0].p_tenant_id, locked[0].p_owner_id)
            rows = [row for row in locked if row.version_id is not None]
            before = replayed(connection, *ids, idempotency_key, request)
            if before is not None:
                return _shown(connection, _of_id(rows, name, before))
            live = next((row.number for row in rows if row.version_id == row.live_version_id), None)
            older = [row for row in rows if row.was_live and live is not None and row.number < live]
            if not older:
                raise Conflict("no_older_version", f"{name} has no older version that was live")
            newest = max(older, key=lambda row: int(row.number))
            remember(connection, *ids, idempotency_key, request, newest.version_id)
            return self._point(connection, scope, newest, "version.rolled_back")

    def delete_version(self, scope: Scope, name: str, number: int, *, clear: bool = True) -> Change:
        """Delete one version that is not live; return its change, to wait for.

        Without `clear` the bytes are left to `Erasures.clear`, here and in `delete_prefix`.

        Raises:
            NotFound: no such prefix or version for this scope.
            Conflict: it is live.
        """
        with self._core.database.write(scope.reach) as connection:
            row = _numbered(self._locked(connection, scope, name), name, number)
            if row.version_id == row.live_version_id:
                raise Conflict(
                    "version_is_live",
                    f"{name}@{number} is live; promote another version first, or delete {name}",
                )
            told = remove_versions(connection, row.tenant_id, [row.version_id])
            if not told:  # it went with the data of somebody whom it had learned from
                raise NotFound("model", f"{name}@{number}")
            ids = (scope.tenant_id, scope.key_id)
            self._core.audit.record(connection, *ids, "version.deleted", row.version_id)
            # A backup of before may hold the job still open, which would make the version again.
            self._core.audit.foresee(connection, scope.tenant_id, "job.cancelled", row.job_id)
        if clear:
            clear_soon(self._core, scope.tenant_id)
        return told[-1]

    def delete_prefix(self, scope: Scope, name: str, *, clear: bool = True) -> Change:
        """Delete a prefix with all its versions, cancel its jobs, free its name; return its last change.

        Its ended jobs stay as history. A new prefix of that name counts its versions on from here, so that
        `name@1` never means two things.

        Raises:
            NotFound: no such prefix for this scope.
        """
        with self._core.database.write(scope.reach) as connection:
            rows = self._locked(connection, scope, name)
            first = rows[0]
            mine = (jobs.c.tenant_id == first.p_tenant_id) & (jobs.c.prefix_id == first.p_prefix_id)
            ended = cancel_jobs(connection, mine, "Fine-tuning job cancelled: its model was deleted")
            of = (
                prefixes.c.tenant_id == first.p_tenant_id,
                prefixes.c.owner_id == first.p_owner_id,
                prefixes.c.prefix_id == first.p_prefix_id,
            )
            gone = [row.version_id for row in rows if row.version_id is not None]
            told = remove_versions(connection, first.p_tenant_id, gone) + tell_gone(connection, ended)
            # Versions before their prefix, as everybody holds them.
            connection.execute(update(prefixes).where(*of).values(deleted_at=db_now(), live_version_id=None))
            if not told:
                told = [change(connection, "version_gone", first.p_tenant_id, first.p_owner_id)]
            ids = (scope.tenant_id, scope.key_id)
            self._core.audit.record(connection, *ids, "prefix.deleted", first.p_prefix_id)
        if clear:
            clear_soon(self._core, scope.tenant_id)
        return told[-1]

    def _stands(self, resolved: Resolved) -> bool:
        owner = resolved.owner
        values = {"tenant": owner.tenant_id, "owner": owner.owner_id, "version": resolved.version_id}
        statement = standing_checkpoint() if resolved.number is None else standing()
        with self._core.database.read(owner.reach) as connection:
            return one(connection, statement, values) is not None

    def _listed_name(self, connection: Connection, scope: Scope, name: str) -> ModelName:
        parsed = parse_model(name)
        if parsed is None or parsed.version is not None or parsed.job is not None:
            raise NotFound("model", name)
        statement = named(of_user=scope.user is not None, tasks_too=True, which="live")
        row = one(connection, statement, name_values(scope, parsed))
        if row is None or not row.has_versions:
            raise NotFound("model", name)
        return parsed

    def _locked(self, connection: Connection, scope: Scope, name: str) -> Sequence[Row[Any]]:
        """Rows of a prefix to be changed, its owner held until commit."""
        rows = self._rows(connection, scope, name)
        lock_owners(connection, rows[0].p_tenant_id, [rows[0].p_owner_id])
        return self._rows(connection, scope, name)  # what stood before the lock may have changed

    def _rows(
        self, connection: Connection, scope: Scope, name: str, *, tasks_too: bool = False
    ) -> Sequence[Row[Any]]:
        parsed = parse_model(name)
        if parsed is None or parsed.version is not None or parsed.job is not None:
            raise NotFound("model", name)
        statement = named(of_user=scope.user is not None, tasks_too=tasks_too, which="all")
        newest_first = statement.order_by(versions.c.number.desc())
        rows = connection.execute(newest_first, name_values(scope, parsed)).all()
        if not rows:
            raise NotFound("model", name)
        return rows

    def _point(self, connection: Connection, scope: Scope, row: Row[Any], action: str) -> Version:
        mine = (versions.c.tenant_id == row.tenant_id, versions.c.version_id == row.version_id)
        if connection.execute(update(versions).where(*mine).values(was_live=True)).rowcount == 0:
            raise NotFound("model", f"{row.prefix_name}@{row.number}")  # taken away since it was read
        of = (prefixes.c.tenant_id == row.tenant_id, prefixes.c.prefix_id == row.prefix_id)
        connection.execute(update(prefixes).where(*of).values(live_version_id=row.version_id))
        change(connection, "version_live", row.tenant_id, row.owner_id, row.version_id)
        self._core.audit.record(connection, scope.tenant_id, scope.key_id, action, row.version_id)
        failpoint("rollback.pointed")
        return _shown(connection, row)


def _shown(connection: Connection, row: Row[Any]) -> Version:
    which = versions.c.version_id == row.version_id
    of = (prefixes.c.tenant_id == row.tenant_id, prefixes.c.prefix_id == row.prefix_id)
    return version_of(connection.execute(joined(which).where(*of, which)).one())


def _of_id(rows: Sequence[Row[Any]], name: str, version_id: str) -> Row[Any]:
    for row in rows:
        if row.version_id == version_id:
            return row
    raise NotFound("model", name, "; the version that it went back to is gone")


def _numbered(rows: Sequence[Row[Any]], name: str, number: int) -> Row[Any]:
    for row in rows:
        if row.number == number:
            return row
    raise NotFound("model", f"{name}@{number}")
