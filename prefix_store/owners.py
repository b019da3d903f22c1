"""Users and tasks of a tenant: the owners of everything else."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from prefix_store.core import Core
from prefix_store.db import db_now
from prefix_store.errors import Conflict, NotFound
from prefix_store.names import OwnerKind, check_name, new_id, parse_owner
from prefix_store.quotas import check_owners
from prefix_store.rows import one
from prefix_store.scope import Owner, Scope
from prefix_store.tables import LIVE, owners, tenants


@dataclass(frozen=True, slots=True)
class OwnerView:
    """An owner as it is listed."""

    owner: Owner
    created_at: float


def owner_of(row: Row[Any]) -> Owner:
    """Read an owner from its row."""
    return Owner(row.tenant_id, row.owner_id, row.kind, row.name)


def find_owner(connection: Connection, scope: Scope, label: str) -> Row[Any]:
    """Return the live owner's row of that label which `scope` may act for.

    Raises:
        NotFound: absent, erased, or another's.
    """
    kind, name = parse_owner(label) or ("user", "")
    where = [
        owners.c.tenant_id == scope.tenant_id,
        owners.c.kind == kind,
        owners.c.name == name,
        owners.c.state == LIVE,
    ]
    if scope.user is not None:
        where.append(owners.c.owner_id == scope.user.owner_id)
    row = one(connection, select(owners).where(*where))
    if row is None:
        raise NotFound("owner", label)
    return row


def lock_tenant(connection: Connection, tenant_id: str) -> Row[Any]:
    """Hold a live tenant's row until commit, so that its quotas are counted one at a time.

    Raises:
        NotFound: erased.
    """
    statement = select(tenants).where(tenants.c.id == tenant_id, tenants.c.state == LIVE)
    row = one(connection, statement.with_for_update(key_share=True))
    if row is None:
        raise NotFound("tenant", tenant_id)
    return row


def lock_owners(connection: Connection, tenant_id: str, owner_ids: Iterable[str]) -> None:
    """Hold owners' rows until commit, so that an erasure of one waits or is seen.

    Raises:
        NotFound: one was erased.
    """
    for owner_id in sorted(set(owner_ids)):
        where = (owners.c.tenant_id == tenant_id, owners.c.owner_id == owner_id, owners.c.state == LIVE)
        if one(connection, select(owners.c.owner_id).where(*where).with_for_update(key_share=True)) is None:
            raise NotFound("owner", owner_id)


class Owners:
    """Users are made by name; tasks appear with their first use by a tenant key."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def create_user(self, scope: Scope, name: str) -> Owner:
        """Make a user; only a tenant-wide scope can.

        Raises:
            Invalid: not a name, or reserved.
            Conflict: a live user has it, or the scope is a user's.
            Quota: too many users and tasks.
        """
        _require_tenant(scope)
        check_name(name, "id", self._core.settings.reserved_names)
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(connection, scope.tenant_id)
            if _live(connection, scope, name) is not None:
                raise Conflict(
                    "user_exists", f"user {name!r} exists; delete it first or choose another id", "id"
                )
            return self._insert(connection, scope, "user", name)

    def ensure_task(self, scope: Scope, name: str) -> Owner:
        """Return the task of that name, made if it is new; only a tenant-wide scope can.

        Raises:
            Conflict: the scope is a user's.
            Invalid: not a name.
            Quota: too many users and tasks.
        """
        _require_tenant(scope)
        check_name(name, "task", self._core.settings.reserved_names)
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(connection, scope.tenant_id)
            found = _live(connection, scope, f"task:{name}")
            return found or self._insert(connection, scope, "task", name)

    def get(self, scope: Scope, label: str) -> Owner:
        """Return a live owner (`alice`, `task:e2e`) that `scope` may act for; NotFound else."""
        return self.view(scope, label).owner

    def view(self, scope: Scope, label: str) -> OwnerView:
        """Return a live owner and when it was made; NotFound as in `get`."""
        with self._core.database.read(scope.reach) as connection:
            row = find_owner(connection, scope, label)
            return OwnerView(owner_of(row), row.created_at)

    def list_users(self, scope: Scope, after: str | None = None, limit: int = 1000) -> Sequence[OwnerView]:
        """Live users that `scope` may act for, by name, beginning behind the name `after`."""
        return self._list(scope, "user", after, limit)

    def list_tasks(self, scope: Scope, after: str | None = None, limit: int = 1000) -> Sequence[OwnerView]:
        """Live tasks that `scope` may act for (none for a user's), by name, behind the name `after`."""
        return self._list(scope, "task", after, limit)

    def _list(self, scope: Scope, kind: OwnerKind, after: str | None, limit: int) -> Sequence[OwnerView]:
        where = [owners.c.tenant_id == scope.tenant_id, owners.c.kind == kind, owners.c.state == LIVE]
        if scope.user is not None:
            where.append(owners.c.owner_id == scope.user.owner_id)
        if after is not None:
            where.append(owners.c.name > after)
        with self._core.database.read(scope.reach) as connection:
            rows = connection.execute(select(owners).where(*where).order_by(owners.c.name).limit(limit))
            return [OwnerView(owner_of(row), row.created_at) for row in rows]

    def _insert(self, connection: Connection, scope: Scope, kind: OwnerKind, name: str) -> Owner:
        check_owners(connection, scope.tenant_id, self._core.settings.max_users)
        owner = Owner(scope.tenant_id, new_id("own"), kind, name)
        ids = {"tenant_id": owner.tenant_id, "owner_id": owner.owner_id}
        values = {"kind": kind, "name": name, "state": "live", "created_at": db_now()}
        connection.execute(insert(owners).values(**ids, **values))
        self._core.audit.record(connection, scope.tenant_id, scope.key_id, f"{kind}.created", owner.owner_id)
        return owner


def _require_tenant(scope: Scope) -> None:
    if scope.user is not None:
        raise Conflict("tenant_key_required", "only a tenant's key does this; use it instead of a user's")


def _live(connection: Connection, scope: Scope, label: str) -> Owner | None:
    try:
        return owner_of(find_owner(connection, scope, label))
    except NotFound:
        return None
