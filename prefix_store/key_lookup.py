"""Whose a key is: asked before anything is known of the caller, and so by the system role."""

import hmac
from contextlib import suppress
from functools import cache
from typing import Any

from sqlalchemy import Select, bindparam, select, update

from prefix_store.core import Core
from prefix_store.db import SystemDatabase, db_today
from prefix_store.errors import Unavailable
from prefix_store.keys import TOKEN, Keys, checksum
from prefix_store.rows import one
from prefix_store.scope import Admin, Owner, Scope
from prefix_store.tables import LIVE, api_keys, owners, tenants


class KeyLookup(Keys):
    """Verify, beside what is done with keys in a scope."""

    def __init__(self, core: Core, system: SystemDatabase) -> None:
        super().__init__(core)
        self._system = system

    def verify(self, token: str) -> Scope | Admin | None:
        """Return what the key reaches; None for anything that is no live key.

        Read from the database each time, so a revoked key is dead with the commit. Writes at most once a
        day and key (the day of last use).
        """
        sent = token.encode("utf-8", "surrogatepass")
        if hmac.compare_digest(sent, self._core.secrets.admin_key.encode()):
            return Admin()
        match = TOKEN.fullmatch(token)
        if match is None or checksum(match.group(1)) != match.group(4):
            return None
        with self._system.read() as connection:
            row = one(connection, _lookup(), {"key": match.group(2)})
        digest = row.digest if row is not None else "0" * 64  # the same work for unknown ids
        if not hmac.compare_digest(self.digest(match.group(3)), digest) or row is None:
            return None
        if row.last_used_day != row.today:
            with suppress(Unavailable):  # as where the disk is full: the key is good all the same
                self._used(row.id, row.today)
        user = None
        if row.owner_id is not None:
            user = Owner(row.tenant_id, row.owner_id, "user", row.owner_name)
        return Scope(row.tenant_id, user, row.id, frozenset(row.grants))

    def _used(self, key_id: str, day: str) -> None:
        with self._system.write() as connection:
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(last_used_day=day))


@cache
def _lookup() -> Select[Any]:
    """The live key with the id `key`; built once, since every request runs it."""
    same = (owners.c.tenant_id == api_keys.c.tenant_id) & (owners.c.owner_id == api_keys.c.owner_id)
    columns = (
        api_keys.c.id,
        api_keys.c.tenant_id,
        api_keys.c.owner_id,
        api_keys.c.digest,
        api_keys.c.grants,
        api_keys.c.last_used_day,
        owners.c.name.label("owner_name"),
        db_today().label("today"),
    )
    tables = api_keys.outerjoin(owners, same).join(tenants, tenants.c.id == api_keys.c.tenant_id)
    live = (api_keys.c.id == bindparam("key"), api_keys.c.revoked_at.is_(None), tenants.c.state == LIVE)
    owner = (api_keys.c.owner_id.is_(None)) | (owners.c.state == LIVE)
    return select(*columns).select_from(tables).where(*live, owner)
