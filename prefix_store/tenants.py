"""Tenants and their limits; only the operator makes or erases them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, bindparam, insert, select
from sqlalchemy.exc import IntegrityError

from prefix_store.core import Core
from prefix_store.db import db_now
from prefix_store.erasure import Erasure, Erasures
from prefix_store.errors import Conflict, Invalid, NotFound
from prefix_store.keys import Keys
from prefix_store.names import new_id
from prefix_store.reach import OPERATOR, Reach
from prefix_store.rows import one
from prefix_store.scope import GRANTS, Admin
from prefix_store.tables import LIVE, tenants

_LIVE_TENANT = select(tenants).where(tenants.c.id == bindparam("tenant"), tenants.c.state == LIVE)


@dataclass(frozen=True, slots=True)
class Tenant:
    """One customer; limits of None are off.

    `joint_training` lets the tenant's jobs be trained in one process with those of others that let theirs.
    """

    id: str
    name: str
    created_at: float
    max_queued: int
    max_jobs: int
    max_dataset_bytes: int
    requests_per_minute: int | None
    tokens_per_day: int | None
    joint_training: bool


@dataclass(frozen=True, slots=True)
class TenantLimits:
    """Limits given when a tenant is made."""

    max_queued: int = 256
    max_jobs: int = 100
    max_dataset_bytes: int = 1 << 30
    requests_per_minute: int | None = None
    tokens_per_day: int | None = None


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        row.id,
        row.name,
        row.created_at,
        row.max_queued,
        row.max_jobs,
        row.max_dataset_bytes,
        row.requests_per_minute,
        row.tokens_per_day,
        row.joint_training,
    )


class Tenants:
    """Made by the operator with their first key."""

    def __init__(self, core: Core, keys: Keys, erasures: Erasures) -> None:
        self._core, self._keys, self._erasures = core, keys, erasures

    def create(
        self, admin: Admin, name: str, limits: TenantLimits | None = None, *, joint_training: bool = False
    ) -> tuple[Tenant, str]:
        """Make a tenant; return it and its first key, shown once.

        Raises:
            Invalid: no printable name of 1 to 64 characters.
            Conflict: a live tenant has it.
        """
        if not 1 <= len(name) <= 64 or not name.isprintable() or name != name.strip():
            raise Invalid("name", "name must be 1 to 64 printable characters without space around")
        try:
            return self._create(admin, name, limits or TenantLimits(), joint_training)
        except IntegrityError:  # another process made it at the same moment
            raise Conflict("tenant_exists", f"tenant {name!r} exists; choose another name", "name") from None

    def _create(
        self, admin: Admin, name: str, limits: TenantLimits, joint_training: bool
    ) -> tuple[Tenant, str]:
        tenant_id = new_id("ten")
        with self._core.database.write(Reach(tenant_id, operator=True)) as connection:
            taken = select(tenants.c.id).where(tenants.c.name == name, tenants.c.state == LIVE)
            if one(connection, taken) is not None:
                raise Conflict("tenant_exists", f"tenant {name!r} exists; choose another name", "name")
            row = connection.execute(
                insert(tenants)
                .values(
                    id=tenant_id,
                    name=name,
                    state="live",
                    created_at=db_now(),
                    max_queued=limits.max_queued,
                    max_jobs=limits.max_jobs,
                    max_dataset_bytes=limits.max_dataset_bytes,
                    requests_per_minute=limits.requests_per_minute,
                    tokens_per_day=limits.tokens_per_day,
                    joint_training=joint_training,
                )
                .returning(tenants)
            ).one()
            key = self._keys.insert(connection, row.id, None, GRANTS)
            self._core.audit.record(connection, row.id, admin.key_id, "tenant.created", row.id)
            return _tenant(row), key.api_key

    def list(self, admin: Admin) -> Sequence[Tenant]:
        """Live tenants by name; for the operator."""
        del admin
        with self._core.database.read(OPERATOR) as connection:
            rows = connection.execute(select(tenants).where(tenants.c.state == LIVE).order_by(tenants.c.name))
            return [_tenant(row) for row in rows]

    def get(self, tenant_id: str) -> Tenant:
        """Return a live tenant; NotFound else."""
        with self._core.database.read(Reach(tenant_id)) as connection:
            row = one(connection, _LIVE_TENANT, {"tenant": tenant_id})
        if row is None:
            raise NotFound("tenant", tenant_id)
        return _tenant(row)

    def erase(self, admin: Admin, tenant_id: str) -> Erasure:
        """Erase a tenant with all its owners, keys and data, as `erasure` says; NotFound if there is none."""
        return self._erasures.begin_tenant(admin, tenant_id)
