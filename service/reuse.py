"""For whom the engine may reuse a prompt: the narrowest caller that a request tells of.

A user's key tells its user. A tenant's key tells only itself: two of them may serve different applications.
In both cases OpenAI's body field `user` may tell who is behind the key, and can only narrow. Whose the prefix
is plays no part: users of one task's prefix must not learn from the time of an answer what another has asked.
"""

import hashlib
from collections import Counter

from prefix_store.scope import Scope


class Reuse:
    """Ids for `Request.reuse`, and those that end with an owner.

    A tenant's key may have carried anybody's text, so whatever owner of a tenant is erased, what the tenant's
    keys have sent until then goes too. Those requests bear an era of their tenant, which ends with the erasure.
    """

    def __init__(self) -> None:
        self._eras: Counter[str] = Counter()

    def ids(self, caller: Scope, user: str | None) -> tuple[str, ...]:
        """Who asks; requests of equal ids may use each other's prompts."""
        # A client's own words: they must not pass for an id, and are kept for as long as its prompts are.
        behind = f"user {hashlib.sha256(user.encode()).hexdigest()}" if user else ""
        if caller.user is not None:
            return (caller.tenant_id, caller.user.owner_id, behind)
        return (caller.tenant_id, caller.key_id, behind, self._era(caller.tenant_id))

    def ended(self, tenant_id: str, owner_id: str) -> set[str]:
        """What the engine must forget when an owner was erased, "" for all of a tenant; called by one thread."""
        if not owner_id:
            return {tenant_id}
        ended = {owner_id, self._era(tenant_id)}
        self._eras[tenant_id] += 1
        return ended

    def _era(self, tenant_id: str) -> str:
        return f"{tenant_id} era {self._eras[tenant_id]}"
