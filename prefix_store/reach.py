"""What a transaction reaches beside the conditions of its statements: the third net, behind scopes and composite keys.

PostgreSQL compares every row with these settings, which end with the transaction (policies of migration 0005);
a transaction that set none sees nothing. SQLite has no such net.
"""

from dataclasses import dataclass
from typing import Final

EVERY_OWNER: Final = "*"  # no owner's id: those have a kind and a hyphen


@dataclass(frozen=True, slots=True)
class Reach:
    """Rows of one tenant; of one owner of it, or (owner_id None) of all.

    `operator`: also the tenants' own rows and their erasures, but nothing that they own.
    """

    tenant_id: str
    owner_id: str | None = None
    operator: bool = False

    @property
    def whole(self) -> "Reach":
        """The same tenant, all owners: for what concerns others by its nature, a quota or what learned from a file."""
        return Reach(self.tenant_id)

    def settings(self) -> tuple[str, str, str]:
        """Values of `prefixserve.tenant`, `prefixserve.owner` and `prefixserve.operator`."""
        owner = EVERY_OWNER if self.owner_id is None else self.owner_id
        return self.tenant_id, owner, "on" if self.operator else ""


OPERATOR: Final = Reach("", "", operator=True)
NOWHERE: Final = Reach("", "")  # for tables whose rows are nobody's
