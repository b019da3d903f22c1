"""Sweeping up: files that no row names, drafts of killed processes, feed and idempotency rows of yesterday."""

from collections import defaultdict

from sqlalchemy import select

from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import SystemDatabase, ping
from prefix_store.errors import Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.feed import Feed
from prefix_store.idempotency import trim
from prefix_store.intents import give_up
from prefix_store.litter import clear
from prefix_store.misses import Misses
from prefix_store.named_files import NAMING
from prefix_store.reach import Reach
from prefix_store.tables import LIVE, intents, owners, tenants

_DAY = 86_400.0


class Janitor:
    """Run by a process now and then; each sweep is idempotent, and goes tenant by tenant."""

    def __init__(self, core: Core, system: SystemDatabase, feed: Feed) -> None:
        self._core, self._system, self._feed = core, system, feed

    def sweep(self, grace_seconds: float = 3600.0) -> int:
        """Remove files that no row names; return how many.

        A file younger than `grace_seconds` may be on its way to its row and stays, unless its owner is
        erased: then no row can come. What cannot be listed or removed, and a tenant whose rows are locked, hold up nothing else.

        Raises:
            Unavailable: files or database do not answer, or did not for some; the rest is swept.
            OSError: the same of a disk.
        """
        removed, misses = 0, Misses(self._core.blobs.away)
        found: dict[str, list[tuple[Place, float]]] = defaultdict(list)
        with misses.passed():
            # Before the rows are read: what is named later is not among them.
            for place, age in self._core.blobs.places():
                found[place.tenant_id].append((place, age))
        with self._system.read() as connection:
            known = connection.execute(select(tenants.c.id)).scalars().all()
        # A tenant's row outlives it: files of one that has none are another database's, and are left alone.
        for tenant_id in known:
            try:
                removed += self._sweep_tenant(tenant_id, found.get(tenant_id, []), grace_seconds, misses)
            except Unavailable as error:
                ping(self._core.database, self._system)  # if it is away, it is for the other tenants too
                misses.add(error)
        if not misses.away:
            with misses.passed():
                self._core.blobs.sweep_drafts(grace_seconds)
        self._feed.trim(_DAY)
        misses.tell()
        return removed

    def _sweep_tenant(
        self, tenant_id: str, files: list[tuple[Place, float]], grace_seconds: float, misses: Misses
    ) -> int:
        with self._core.database.write(Reach(tenant_id)) as connection:
            failpoint("sweep.before_trim")
            trim(connection, tenant_id, _DAY)
            # Before their files go: a machine that slept in front of its row is then refused it.
            give_up(connection, intents.c.tenant_id == tenant_id, grace_seconds)
        if misses.away:
            return 0
        removed = self._sweep_files(tenant_id, files, grace_seconds, misses)
        if not misses.away:
            with misses.passed():
                clear(self._core, tenant_id)
        return removed

    def _sweep_files(
        self, tenant_id: str, files: list[tuple[Place, float]], grace_seconds: float, misses: Misses
    ) -> int:
        if not files:
            return 0
        alive = select(owners.c.owner_id).where(owners.c.tenant_id == tenant_id, owners.c.state == LIVE)
        coming = select(intents.c.tenant_id, intents.c.owner_id, intents.c.object_id)
        named: set[Place] = set()
        with self._core.database.read(Reach(tenant_id)) as connection:
            living = set(connection.execute(alive).scalars())
            # Before the names: what is named in between is in one of the two. Its age by a file's clock says nothing.
            noted = {
                Place(*row) for row in connection.execute(coming.where(intents.c.tenant_id == tenant_id))
            }
            for _, column, _ in NAMING:
                of = (column.table.c.tenant_id, column.table.c.owner_id)
                rows = connection.execute(select(*of, column).where(of[0] == tenant_id))
                named |= {Place(*row) for row in rows if row[2]}
        orphans = [
            place
            for place, age in files
            if place not in named
            and (place.owner_id not in living or (age > grace_seconds and place not in noted))
        ]
        removed = 0
        for place in orphans:
            if misses.away:
                break
            with misses.passed():
                failpoint("sweep.before_unlink")
                self._core.blobs.delete(place)
                removed += 1
        return removed
