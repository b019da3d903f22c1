"""Erasures and removals that are not done: found over all tenants by the system role, gone on with in each one's reach."""

import logging
import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, func, or_, select

from prefix_store.core import Core
from prefix_store.db import SystemDatabase, db_now
from prefix_store.erasure import Erasures
from prefix_store.litter import clear, clear_soon
from prefix_store.tables import erasures, litter

log = logging.getLogger(__name__)

YOUNG_SECONDS = 10.0  # so long the request that began an erasure may itself be at it
TURN_SECONDS = 10.0  # so long one erasure removes files before another has its turn
_LONGEST_PAUSE = 16.0


class UnfinishedErasures(Erasures):
    """Resume, beside what is done with an erasure in a scope."""

    def __init__(self, core: Core, system: SystemDatabase) -> None:
        super().__init__(core)
        self._system = system
        # Open erasure -> when it is due on the monotonic clock, and the pause before that.
        self._tried: dict[str, tuple[float, float]] = {}

    def pending(self) -> Sequence[str]:
        """Ids of erasures that are not done, oldest first."""
        return self._open()

    def backlog(self) -> tuple[int, float]:
        """How many erasures are not done, and the age in seconds of the oldest; 0 if there is none. For metrics."""
        oldest = func.coalesce(db_now() - func.min(erasures.c.created_at), 0.0)
        found = select(func.count(), oldest).where(erasures.c.state != "done")
        with self._system.read() as connection:
            count, age = connection.execute(found).one()
        return int(count), max(0.0, float(age))

    def resume(self) -> int:
        """Go on with every erasure and removal cut short; return how many erasures are still open.

        Raises:
            Unavailable: files or database do not answer.
        """
        for tenant_id in self._noted():
            clear(self._core, tenant_id)
        self._core.blobs.forgotten()
        rows = [self._row(erasure_id) for erasure_id in self._open()]
        return len(rows) - self._finish([row for row in rows if self._removed(row)])

    def go_on(self) -> None:
        """What every process does every few seconds: the same, without treading on who is at it already.

        Erasures that a request has just begun are left to it; one that stays open, since a worker may hold its data
        or its files cannot be reached, is tried again after twice as long, up to 16 s, and holds up no other. What
        is ready is scrubbed together: a scrub goes over all tables.
        """
        for tenant_id in self._noted():
            clear_soon(self._core, tenant_id)
        self._core.blobs.forgotten()
        ids = self._open(YOUNG_SECONDS)
        self._gone = {one: gone for one, gone in self._gone.items() if one in ids}
        self._tried = {one: self._tried.get(one, (0.0, 1.0)) for one in ids}
        due = [one for one in ids if self._tried[one][0] <= time.monotonic()]
        for one in due:
            pause = min(_LONGEST_PAUSE, 2 * self._tried[one][1])
            self._tried[one] = time.monotonic() + pause, pause
        rows = [self._row(one) for one in due]
        removed = [row for row in rows if row.state != "done" and self._taken_turn(row)]
        # What lacks only a scrub, which somebody's transaction held up, is not put off.
        if self._finish(removed) < len(removed):
            self._tried |= {row.id: (0.0, 1.0) for row in removed}

    def _noted(self) -> Sequence[str]:
        with self._system.read() as connection:
            return connection.execute(select(litter.c.tenant_id).distinct()).scalars().all()

    def _open(self, older_than: float | None = None) -> Sequence[str]:
        """Those that were begun so long ago, or in the future of a clock that was set back since; all if None."""
        found = select(erasures.c.id).where(erasures.c.state != "done").order_by(erasures.c.created_at)
        if older_than is not None:
            begun = erasures.c.created_at
            found = found.where(or_(begun <= db_now() - older_than, begun > db_now()))
        with self._system.read() as connection:
            return connection.execute(found).scalars().all()

    def _taken_turn(self, row: Row[Any]) -> bool:
        """Go on with one for some seconds; a tenant of thousands of users must not keep everybody else's open meanwhile.

        What is cut short stays open, and whose files are gone is not asked again: a turn that came forward is followed by
        the next at once, and loses nothing. One that did not is paced like any that is held up.
        """
        began, before = time.monotonic(), len(self._gone.get(row.id, ()))
        removed = self._removed_now(row)
        over = time.monotonic() - began >= TURN_SECONDS
        if over and not removed and len(self._gone.get(row.id, ())) > before:
            self._tried[row.id] = (0.0, 1.0)
        return removed

    def _removed_now(self, row: Row[Any]) -> bool:
        try:
            return self._removed(row, TURN_SECONDS)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            log.warning("an erasure goes on later: %s", type(error).__name__)
            return False

    def _finish(self, rows: Sequence[Row[Any]]) -> int:
        """Of erasures whose rows and files are gone: scrub and close; how many were closed."""
        if not rows or not self._scrubbed():
            return 0
        for row in rows:
            self._done(row)
        return len(rows)
