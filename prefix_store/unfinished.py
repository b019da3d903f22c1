"""Erasures and removals that are not done: found over all tenants by the system role, gone on with in each one's reach."""

from collections.abc import Sequence

from sqlalchemy import select

from prefix_store.core import Core
from prefix_store.db import SystemDatabase
from prefix_store.erasure import Erasures
from prefix_store.litter import clear
from prefix_store.tables import erasures, litter


class UnfinishedErasures(Erasures):
    """Resume, beside what is done with an erasure in a scope."""

    def __init__(self, core: Core, system: SystemDatabase) -> None:
        super().__init__(core)
        self._system = system

    def pending(self) -> Sequence[str]:
        """Ids of erasures that are not done, oldest first."""
        open_ = select(erasures.c.id).where(erasures.c.state != "done").order_by(erasures.c.created_at)
        with self._system.read() as connection:
            return connection.execute(open_).scalars().all()

    def resume(self) -> int:
        """Go on with every erasure and removal cut short; return how many erasures are still open.

        Call it at start and every few seconds.
        """
        with self._system.read() as connection:
            noted = connection.execute(select(litter.c.tenant_id).distinct()).scalars().all()
        for tenant_id in noted:
            clear(self._core, tenant_id)
        self._core.blobs.forgotten()
        return sum(self.purge(erasure_id).state != "done" for erasure_id in self.pending())
