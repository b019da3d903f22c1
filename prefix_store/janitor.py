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
_NAMING = (datasets.c.id, versions.c.version_id, checkpoints.c.object_id, checkpoints.c.prefix_object_id)


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
            for column in _NAMING:
                ids = (column.table.c.tenant_id, column.table.c.owner_id)
                named |= {Place(*row) for row in connection.execute(select(*ids, column)) if row[2]}
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
