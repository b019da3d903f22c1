"""API keys: made, verified, revoked. The secret is shown once and stored only as an HMAC.

    pfx_live_<key id, 12>_<secret, 43 of base 62>_<CRC-32 of the rest, 6 of base 62>

The checksum lets scanners and typing errors be told from guesses without the database. The secret has
over 250 random bits, so a fast HMAC with a pepper is enough and cannot be used to burn our CPU.
"""

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, insert, select, update

from prefix_store.core import Core
from prefix_store.db import db_now
from prefix_store.errors import Conflict, Invalid, NotFound
from prefix_store.failpoints import failpoint
from prefix_store.names import base62
from prefix_store.owners import find_owner, lock_owners, lock_tenant, owner_of
from prefix_store.quotas import check_keys
from prefix_store.scope import GRANTS, USER_GRANTS, Owner, Scope
from prefix_store.tables import api_keys, owners

TOKEN = re.compile(r"(pfx_live_([0-9A-Za-z]{12})_([0-9A-Za-z]{43}))_([0-9A-Za-z]{6})")


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key; `api_key` is the token, shown this once and stored nowhere."""

    id: str
    api_key: str
    user: str | None
    grants: frozenset[str]
    created_at: float


@dataclass(frozen=True, slots=True)
class KeyView:
    """A key as it is listed; `last_used_day` is a UTC day, no finer."""

    id: str
    user: str | None
    grants: frozenset[str]
    last4: str
    created_at: float
    last_used_day: str | None


def checksum(text: str) -> str:
    """CRC-32 of a token's body, 6 of base 62."""
    return base62(zlib.crc32(text.encode()).to_bytes(4), 6)


class Keys:
    """Keys of tenants and of their users."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def issue(self, scope: Scope, user: str | None, grants: frozenset[str] | None = None) -> IssuedKey:
        """Make a key for the tenant or for one of its users; only a tenant-wide scope can.

        Raises:
            NotFound: no such user.
            Invalid: unknown grants, or more than the maker or a user's key may have.
            Conflict: the scope is a user's.
            Quota: too many keys.
        """
        if scope.user is not None:
            raise Conflict(
                "tenant_key_required", "only a tenant's key makes keys; use it instead of a user's"
            )
        allowed = (USER_GRANTS if user is not None else GRANTS) & scope.grants
        wanted = allowed if grants is None else grants
        if not wanted or wanted - allowed:
            raise Invalid("scopes", f"scopes may be: {', '.join(sorted(allowed))}")
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(connection, scope.tenant_id)
            owner = None
            if user is not None:
                owner = owner_of(find_owner(connection, scope, user))
                if owner.kind != "user":
                    raise NotFound("owner", user)
                lock_owners(connection, owner.tenant_id, [owner.owner_id])
            check_keys(connection, scope.tenant_id, self._core.settings.max_keys)
            issued = self.insert(connection, scope.tenant_id, owner, wanted)
            self._core.audit.record(connection, scope.tenant_id, scope.key_id, "key.issued", issued.id)
            failpoint("key.after_row")
            return issued

    def insert(
        self, connection: Connection, tenant_id: str, owner: Owner | None, grants: frozenset[str]
    ) -> IssuedKey:
        """Make a key within the caller's transaction; for the store's own parts."""
        key_id, secret = base62(secrets.token_bytes(32), 12), base62(secrets.token_bytes(40), 43)
        body = f"pfx_live_{key_id}_{secret}"
        owner_id, name = (owner.owner_id, owner.name) if owner is not None else (None, None)
        values = {"tenant_id": tenant_id, "owner_id": owner_id, "digest": self.digest(secret)}
        shown = {"last4": secret[-4:], "grants": sorted(grants), "created_at": db_now()}
        statement = insert(api_keys).values(id=key_id, **values, **shown).returning(api_keys.c.created_at)
        created_at = float(connection.execute(statement).scalar_one())
        return IssuedKey(key_id, f"{body}_{checksum(body)}", name, grants, created_at)

    def list(self, scope: Scope) -> Sequence[KeyView]:
        """Live keys that `scope` reaches, oldest first."""
        where = [api_keys.c.tenant_id == scope.tenant_id, api_keys.c.revoked_at.is_(None)]
        if scope.user is not None:
            where.append(api_keys.c.owner_id == scope.user.owner_id)
        statement = _joined().where(*where).order_by(api_keys.c.created_at, api_keys.c.id)
        with self._core.database.read(scope.reach) as connection:
            return [_view(row) for row in connection.execute(statement)]

    def revoke(self, scope: Scope, key_id: str) -> None:
        """End a key at once.

        Raises:
            NotFound: absent, revoked already, or another's.
        """
        where = [
            api_keys.c.id == key_id,
            api_keys.c.tenant_id == scope.tenant_id,
            api_keys.c.revoked_at.is_(None),
        ]
        if scope.user is not None:
            where.append(api_keys.c.owner_id == scope.user.owner_id)
        with self._core.database.write(scope.reach) as connection:
            if connection.execute(update(api_keys).where(*where).values(revoked_at=db_now())).rowcount != 1:
                raise NotFound("key", key_id)
            self._core.audit.record(connection, scope.tenant_id, scope.key_id, "key.revoked", key_id)
            failpoint("key.revoked")

    def digest(self, secret: str) -> str:
        """What is stored of a secret; for the store's own parts."""
        return hmac.new(self._core.secrets.pepper, secret.encode(), hashlib.sha256).hexdigest()


def _joined() -> Select[Any]:
    same = (owners.c.tenant_id == api_keys.c.tenant_id) & (owners.c.owner_id == api_keys.c.owner_id)
    shown = [column for column in api_keys.c if column.name != "digest"]
    tables = api_keys.outerjoin(owners, same)
    return select(*shown, owners.c.name.label("owner_name")).select_from(tables)


def _view(row: Row[Any]) -> KeyView:
    return KeyView(
        row.id, row.owner_name, frozenset(row.grants), row.last4, row.created_at, row.last_used_day
    )
