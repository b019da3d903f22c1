"""A bounded amount that tenants share, without a quota for each: nobody takes more than is left for the others.

Choudhury and Hahne 1998, "Dynamic queue length thresholds for shared-memory packet switches": what one may hold is
as much as is still free. One tenant alone comes to half of it, two to a third each, and so on; a newcomer always
finds room, however many have come before.
"""

import threading
from collections import Counter
from typing import Literal

Full = Literal["tenant", "all"]


class Shares:
    """Rows, tokens or bytes of one process.

    Args:
        bound: most that all tenants hold together.
    """

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self._held: Counter[str] = Counter()
        self._total = 0
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """What all hold."""
        return self._total

    def held(self, tenant_id: str) -> int:
        """What a tenant holds."""
        return self._held[tenant_id]

    def holders(self) -> int:
        """How many tenants hold anything."""
        return len(self._held)

    def may_ever_fit(self, amount: int) -> bool:
        """Whether a tenant that holds nothing could take so much of what nobody else uses."""
        return 2 * amount <= self.bound

    def lacking(self, tenant_id: str, amount: int) -> int:
        """How much too much it would be; 0 if it fits."""
        return max(0, self._held[tenant_id] + self._total + 2 * amount - self.bound)

    def refusal(self, tenant_id: str, amount: int) -> Full | None:
        """Why a tenant may not take so much more now: "tenant", it has its part; "all", the others have.

        Nothing at all is never refused, though what a tenant holds may be more than its part has become since.
        """
        if not amount or not self.lacking(tenant_id, amount):
            return None
        sharing = len(self._held) + (tenant_id not in self._held)
        part = self.bound // (sharing + 1)
        return "tenant" if self._held[tenant_id] + amount > part else "all"

    def take(self, tenant_id: str, amount: int) -> Full | None:
        """Take it if there is room, in one step with the look; the same answer as `refusal`'s."""
        with self._lock:
            refused = self.refusal(tenant_id, amount)
            if refused is None and amount:
                self._held[tenant_id] += amount
                self._total += amount
            return refused

    def give(self, tenant_id: str, amount: int) -> None:
        """Give back what was taken."""
        with self._lock:
            self._held[tenant_id] -= amount
            self._total -= amount
            if not self._held[tenant_id]:
                del self._held[tenant_id]
