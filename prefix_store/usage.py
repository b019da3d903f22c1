"""Tokens and requests by owner and day (UTC, the database's clock)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from prefix_store.core import Core
from prefix_store.db import db_today
from prefix_store.errors import NotFound
from prefix_store.failpoints import failpoint
from prefix_store.idempotency import remember
from prefix_store.owners import find_owner, lock_owners, lock_tenant
from prefix_store.reach import Reach
from prefix_store.scope import Owner, Scope
from prefix_store.tables import idempotency, owners, usage


@dataclass(frozen=True, slots=True)
class UsageDay:
    """One owner's use of one day; `user` and `task` None for the tenant itself and for erased owners."""

    day: str
    user: str | None
    task: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """By which a count that is sent again is known: who counts, and the how-manieth of a key's counts this is.

    Numbers of one writer grow, and a count is not followed by another of its key and owner before it has been written.
    """

    writer: str
    number: int


class Usage:
    """Record and report."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def record(
        self,
        scope: Scope,
        owner: Owner | None,
        prompt_tokens: int,
        completion_tokens: int,
        requests: int = 1,
        receipt: Receipt | None = None,
    ) -> None:
        """Add to today's count of `owner` (None: the tenant itself); an erased owner's goes to the tenant.

        With a `receipt` a count that was written before, though nobody was told, is not added again.
        """
        with self._core.database.write(scope.reach.whole) as connection:
            try:
                lock_tenant(connection, scope.tenant_id)
            except NotFound:  # erased with all its counts
                return
            owner_id = "" if owner is None else owner.owner_id
            if receipt is not None and _written(connection, scope, owner_id, receipt):
                return
            try:
                lock_owners(connection, scope.tenant_id, [owner_id] if owner_id else [])
            except NotFound:
                owner_id = ""
            day = str(connection.execute(select(db_today())).scalar_one())
            key = (scope.tenant_id, owner_id, day)
            add_usage(connection, key, requests, prompt_tokens, completion_tokens)
            failpoint("usage.after_row")

    def report(
        self, scope: Scope, start: str | None = None, end: str | None = None, user: str | None = None
    ) -> Sequence[UsageDay]:
        """Use by owner and day, from `start` to `end` inclusive (YYYY-MM-DD, UTC), newest day first.

        `user` is an owner's label; a user's scope sees its own use only.

        Raises:
            NotFound: no such user for this scope.
        """
        same = (owners.c.tenant_id == usage.c.tenant_id) & (owners.c.owner_id == usage.c.owner_id)
        where: list[Any] = [usage.c.tenant_id == scope.tenant_id]
        if scope.user is not None:
            where.append(usage.c.owner_id == scope.user.owner_id)
        if start is not None:
            where.append(usage.c.day >= start)
        if end is not None:
            where.append(usage.c.day <= end)
        statement = (
            select(usage, owners.c.kind, owners.c.name)
            .select_from(usage.outerjoin(owners, same))
            .where(*where)
            .order_by(usage.c.day.desc(), owners.c.kind, owners.c.name)
        )
        with self._core.database.read(scope.reach) as connection:
            if user is not None:
                wanted = find_owner(connection, scope, user)
                statement = statement.where(usage.c.owner_id == wanted.owner_id)
            return [
                UsageDay(
                    row.day,
                    row.name if row.kind == "user" else None,
                    row.name if row.kind == "task" else None,
                    row.requests,
                    row.prompt_tokens,
                    row.completion_tokens,
                )
                for row in connection.execute(statement)
            ]

    def tokens_today(self, tenant_id: str) -> int:
        """Tokens of a tenant today, prompt and completion."""
        with self._core.database.read(Reach(tenant_id)) as connection:
            where = (usage.c.tenant_id == tenant_id, usage.c.day == db_today())
            total = func.coalesce(func.sum(usage.c.prompt_tokens + usage.c.completion_tokens), 0)
            return int(connection.execute(select(total).where(*where)).scalar_one())


def _written(connection: Connection, scope: Scope, owner_id: str, receipt: Receipt) -> bool:
    """Whether the count is there; else it is from here on. One row for each writer, key and owner, for a day at most.

    The row is the tenant's, so that it outlives the owner whose count it is.
    """
    key = f"usage {receipt.writer} {scope.key_id} {owner_id}"
    mine = (
        idempotency.c.tenant_id == scope.tenant_id,
        idempotency.c.owner_id == "",
        idempotency.c.key == key,
    )
    number = str(receipt.number)
    if connection.execute(select(idempotency.c.object_id).where(*mine)).scalar() == number:
        return True
    connection.execute(delete(idempotency).where(*mine))
    remember(connection, scope.tenant_id, "", key, "", number)
    return False


def add_usage(
    connection: Connection,
    key: tuple[str, str, str],
    requests: int,
    prompt_tokens: int,
    completion_tokens: int,
) -> None:
    """Add to the row of (tenant, owner or "", day) within the caller's transaction."""
    tenant_id, owner_id, day = key
    counts = {"requests": requests, "prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    upsert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = upsert(usage).values(tenant_id=tenant_id, owner_id=owner_id, day=day, **counts)
    more = {name: usage.c[name] + count for name, count in counts.items()}
    connection.execute(
        statement.on_conflict_do_update(index_elements=["tenant_id", "owner_id", "day"], set_=more)
    )
