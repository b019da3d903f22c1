"""Who may touch what. A scope is made by authentication alone and is the first argument of every store
call that touches owned data, so that forgetting it is a type error.
"""

from dataclasses import dataclass
from typing import Final

from prefix_store.names import OwnerKind, owner_label
from prefix_store.reach import Reach

GRANTS: Final = frozenset(
    {
        "generate",
        "prefixes:read",
        "prefixes:write",
        "datasets:write",
        "jobs:write",
        "keys:admin",
        "users:erase",
    }
)
USER_GRANTS: Final = frozenset(
    {"generate", "prefixes:read", "prefixes:write", "datasets:write", "jobs:write"}
)


@dataclass(frozen=True, slots=True)
class Owner:
    """A user or a task of a tenant: the unit of isolation.

    `owner_id` is random and fresh whenever a name is given anew, so nothing of an erased owner can meet
    a later one of the same name.
    """

    tenant_id: str
    owner_id: str
    kind: OwnerKind
    name: str

    @property
    def label(self) -> str:
        """What stands before the colon in names: `alice`, or `task:e2e` for a task."""
        return owner_label(self.kind, self.name)

    @property
    def reach(self) -> Reach:
        """What the database lets a transaction for this owner touch."""
        return Reach(self.tenant_id, self.owner_id)


@dataclass(frozen=True, slots=True)
class Scope:
    """What one key reaches: a tenant, and one user of it or (user None) all of it.

    `grants` are what its key may do; the store checks what a scope reaches, the service what it may do.
    """

    tenant_id: str
    user: Owner | None
    key_id: str
    grants: frozenset[str]

    @property
    def reach(self) -> Reach:
        """What the database lets a transaction in this scope touch."""
        return Reach(self.tenant_id) if self.user is None else self.user.reach


@dataclass(frozen=True, slots=True)
class Admin:
    """The operator: makes and erases tenants, reaches no owned data."""

    key_id: str = "admin"
