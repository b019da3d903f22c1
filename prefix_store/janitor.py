"""Sweeping up: files that no row names, drafts of killed processes, feed and idempotency rows of yesterday."""

from sqlalchemy import select

from prefix_store.blobs import Blobs
from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.feed import Feed
from prefix_store.idempotency import trim
from prefix_store.litter import clear
from prefix_store.tables import LIVE, checkpoints, datasets, owners, versions

_DAY = 86_400.0


class Janitor:
    """Run by a process now and then; each sweep is idempotent."""

    def __init__(self, core: Core, feed: Feed) -> None:
        self._core, self._feed = core, feed

    def sweep(self, grace_seconds: float = 3600.0) -> int:
        """Remove files that no row names; return how many.

        A file younger than `grace_seconds` may be on its way to its row and stays, unless its owner is
        erased: then no row can come.
        """
        blobs: Blobs = self._core.blobs
        found = blobs.places()  # before the rows are read: what is named later is not among them
        with self._core.database.read() as connection:
            alive = set(connection.execute(select(owners.c.owner_id).where(owners.c.state == LIVE)).scalars())
            named: set[Place] = set()
            for table, column in ((datasets, "id"), (versions, "version_id"), (checkpoints, "object_id")):
                rows = connection.execute(select(table.c.tenant_id, table.c.owner_id, table.c[column]))
                named |= {Place(*row) for row in rows}
        orphans = [
            place
            for place, age in found
            if place not in named and (age > grace_seconds or place.owner_id not in alive)
        ]
        for place in orphans:
            blobs.delete(place)
        blobs.sweep_drafts(grace_seconds)
        clear(self._core)
        self._feed.trim(_DAY)
        with self._core.database.write() as connection:
            trim(connection, _DAY)
        return len(orphans)
