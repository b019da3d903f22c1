"""The change feed that every serving process follows, and which of them have followed it how far.

A delete is acknowledged when every process whose beat is fresh has reached its change. A process that
cannot read the feed must stop serving by itself before the others count it dead.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Select, delete, func, insert, select, update

from prefix_store.core import Core
from prefix_store.db import SystemDatabase, db_now
from prefix_store.errors import FeedGap
from prefix_store.failpoints import failpoint
from prefix_store.machine import this_machine
from prefix_store.names import new_id
from prefix_store.reach import NOWHERE
from prefix_store.rows import Change
from prefix_store.tables import changes, counters, processes


class Acknowledgements:
    """How far the feed is, and who has followed it so far: what a request that deletes waits for."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def position(self) -> int:
        """Return the number of the last change."""
        with self._core.database.read(NOWHERE) as connection:
            return int(connection.execute(_position()).scalar_one())

    def acked(self, seq: int) -> bool:
        """Whether every process with a fresh beat has acted on the changes up to `seq`.

        One whose beat is older than `process_dead_after` counts as dead, one that left does not count.
        """
        fresh = processes.c.beat_at > db_now() - self._core.settings.process_dead_after
        behind = select(func.count()).where(fresh, processes.c.position < seq)
        with self._core.database.read(NOWHERE) as connection:
            return bool(connection.execute(behind).scalar_one() == 0)


class Feed(Acknowledgements):
    """Join, read, beat, leave: by the system role, since changes are of all tenants."""

    def __init__(self, core: Core, system: SystemDatabase) -> None:
        super().__init__(core)
        self._system = system

    def join(self, kind: str) -> str:
        """Register a process before it serves anything; return its id. It follows from `position` on."""
        process_id = new_id("proc")
        with self._system.write() as connection:
            position = int(connection.execute(_position()).scalar_one())
            values = {"position": position, "beat_at": db_now(), "machine": this_machine()}
            connection.execute(insert(processes).values(id=process_id, kind=kind, **values))
        return process_id

    def read(self, after: int, seen: Change | None = None) -> Sequence[Change]:
        """Changes after a position, in the order of their commits; an idle poll reads one row.

        `seen` is the change at the position, if the caller has read it.

        Raises:
            FeedGap: changes in between were forgotten (a process that slept for a day), or the database went back
                behind `after` (a standby that lacks the last ones): what follows bears numbers that count as seen, and
                at the position there may be another change by now. Start anew.
        """
        statement = select(changes).where(changes.c.seq >= after).order_by(changes.c.seq)
        with self._system.read() as connection:
            failpoint("feed.read")
            last = int(connection.execute(_position()).scalar_one())
            if last == after:
                return []
            if last < after:
                raise FeedGap("the database lacks changes that this process has seen; start it anew")
            found = [_change_of(row) for row in connection.execute(statement)]
        there = found.pop(0) if found and found[0].seq == after else None  # it may be forgotten
        if there is not None and seen is not None and there != seen:
            raise FeedGap("the database has another change where this process has seen one; start it anew")
        if not found or found[0].seq != after + 1:
            raise FeedGap("changes that this process has not seen are forgotten; start it anew")
        return found

    def beat(self, process_id: str, position: int, generating: int = 0) -> None:
        """Say that this process lives, has acted on every change up to `position`, and generates so many texts."""
        with self._system.write() as connection:
            values = {
                "position": position,
                "beat_at": db_now(),
                "machine": this_machine(),
                "generating": generating,
            }
            done = connection.execute(update(processes).where(processes.c.id == process_id).values(**values))
            if done.rowcount == 0:  # counted dead and removed; alive all the same
                connection.execute(insert(processes).values(id=process_id, kind="service", **values))

    def leave(self, process_id: str) -> None:
        """Unregister; the process serves nothing any more."""
        with self._system.write() as connection:
            connection.execute(delete(processes).where(processes.c.id == process_id))

    def generating(self) -> int:
        """Texts that the living processes of this machine generate, as of their latest beats."""
        fresh = processes.c.beat_at > db_now() - self._core.settings.process_dead_after
        here = select(func.coalesce(func.sum(processes.c.generating), 0)).where(
            fresh, processes.c.machine == this_machine()
        )
        with self._system.read() as connection:
            return int(connection.execute(here).scalar_one())

    def trim(self, older_than_seconds: float) -> None:
        """Forget processes long dead, and changes as old that every other process has passed."""
        with self._system.write() as connection:
            dead = processes.c.beat_at < db_now() - older_than_seconds
            connection.execute(delete(processes).where(dead))
            behind = select(func.coalesce(func.min(processes.c.position), _position().scalar_subquery()))
            old = changes.c.at < db_now() - older_than_seconds
            connection.execute(delete(changes).where(old, changes.c.seq <= behind.scalar_subquery()))


def _change_of(row: Row[Any]) -> Change:
    return Change(row.seq, row.kind, row.tenant_id, row.owner_id, row.version_id, row.job_id)


def _position() -> Select[Any]:
    return select(counters.c.value).where(counters.c.name == "changes")
