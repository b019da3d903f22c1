"""Taking a job: the one thing of jobs that looks over all tenants, and so is done by the system role.

That role chooses, locks and takes; what the job is, is read as its owner's, and so is a job that is given up ended.
"""

from dataclasses import replace
from typing import Any

import structlog
from sqlalchemy import ColumnElement, Connection, Row, case, func, select, update
from sqlalchemy.exc import IntegrityError

from prefix_store.checkpoints import tell_gone
from prefix_store.core import Core
from prefix_store.db import SystemDatabase, db_now
from prefix_store.failpoints import failpoint
from prefix_store.job_rows import Claim, add_event, job_of, joined_jobs
from prefix_store.jobs import Jobs
from prefix_store.reach import Reach
from prefix_store.rows import one
from prefix_store.seating import Seating, another_waits, take
from prefix_store.tables import jobs

log = structlog.get_logger("prefix_store")

_COLLISIONS = 8
_PUT_OFF_SECONDS = 60.0


class _Later(Exception):
    """A job of a later release, which this one does not know how to train; it was not taken."""

    def __init__(self, row: Row[Any]) -> None:
        super().__init__(row.id)
        self.row = row


class Claims(Jobs):
    """Claim and count, beside what is done with a job in a scope or under a claim."""

    def __init__(self, core: Core, system: SystemDatabase) -> None:
        super().__init__(core)
        self._system = system

    def claim(self, worker: str, seating: Seating = "alone", behind: str | None = None) -> Claim | None:
        """Take the next job: of the tenant with the fewest running, then the oldest; None if there is none.

        A running job whose lease ran out is taken again; after `max_attempts` crashes it fails instead. What
        a process dies of while it trains several jobs is none's fault: each is then tried again alone, and
        only crashes there count.

        Args:
            worker: that takes it.
            seating: `alone`, the job gets a process of its own; `first`, a process where others may join it,
                if its tenant lets it; `beside`, it is to be trained beside others, and if the next job may
                not, none is taken: nobody is overtaken.
            behind: id of a tenant that has just given way, and counts as if one more job of it were running.
        """
        self._give_up_crashed()
        for _ in range(_COLLISIONS):
            try:
                with self._system.write() as connection:
                    row = connection.execute(take(worker, seating, self._core.settings, behind)).first()
                    return None if row is None else self._claimed(connection, row)
            except IntegrityError:  # another worker took another job of this prefix at the same moment
                continue
            except _Later as later:
                self._put_off(later.row)
        return None

    def counts(self) -> dict[str, int]:
        """Jobs by status over all tenants, for metrics."""
        with self._system.read() as connection:
            rows = connection.execute(select(jobs.c.status, func.count()).group_by(jobs.c.status))
            return {row[0]: row[1] for row in rows}

    def another_waits(self, claim: Claim, waited_seconds: float) -> bool:
        """Whether another tenant's job has waited for so long and would be taken if this claim's gave way to it."""
        with self._system.read() as connection:
            asked = another_waits(claim.owner.tenant_id, waited_seconds, self._core.settings.max_attempts)
            return bool(connection.execute(asked).scalar_one())

    def leased(self) -> int:
        """Jobs that a worker holds, over all tenants; a row may say `running` when no worker is left."""
        good = (jobs.c.status == "running", jobs.c.lease_until > db_now())
        with self._system.read() as connection:
            return int(connection.execute(select(func.count()).select_from(jobs).where(*good)).scalar_one())

    def _claimed(self, connection: Connection, row: Row[Any]) -> Claim:
        """Tell that the job starts, and read it as its owner's; if that fails, it was not taken."""
        failpoint("claim.taken")
        again = "" if row.attempt == 1 else f" again (attempt {row.attempt})"
        add_event(connection, row, "info", "message", f"Fine-tuning job started{again}")
        mine = (jobs.c.tenant_id == row.tenant_id, jobs.c.id == row.id)
        with self._core.database.read(Reach(row.tenant_id, row.owner_id)) as reading:
            found = reading.execute(joined_jobs().where(*mine)).one()
        try:
            before = job_of(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise _Later(row) from error
        if before.later:
            raise _Later(row)
        job = replace(before, status="running", attempt=row.attempt, started_at=row.started_at)
        return Claim(row.id, row.attempt, job.owner, job, row.prefix_id, row.company == "joint")

    def _put_off(self, row: Row[Any]) -> None:
        """Leave a job to a worker of the release that made it."""
        log.error("job.of_later_release", job=row.id)
        mine = (jobs.c.tenant_id == row.tenant_id, jobs.c.id == row.id, jobs.c.attempt == row.attempt - 1)
        later = db_now() + _PUT_OFF_SECONDS
        running = jobs.c.status == "running"
        values = {"run_at": later, "lease_until": case((running, later), else_=jobs.c.lease_until)}
        with self._core.database.write(Reach(row.tenant_id, row.owner_id)) as connection:
            connection.execute(update(jobs).where(*mine).values(values))

    def _give_up_crashed(self) -> None:
        columns = (jobs.c.tenant_id, jobs.c.owner_id, jobs.c.id)
        with self._system.read() as connection:
            found = connection.execute(select(*columns).where(*self._spent())).all()
        for row in found:
            mine = (jobs.c.tenant_id == row.tenant_id, jobs.c.owner_id == row.owner_id, jobs.c.id == row.id)
            still = select(jobs).where(*mine, *self._spent()).with_for_update(skip_locked=True)
            with self._core.database.write(Reach(row.tenant_id, row.owner_id)) as connection:
                job = one(connection, still)
                if job is not None:
                    self._give_up(connection, job)
                    tell_gone(connection, [job])

    def _spent(self) -> tuple[ColumnElement[bool], ...]:
        """Its worker is gone, not for the first time: it is not tried again."""
        return (
            jobs.c.status == "running",
            jobs.c.lease_until <= db_now(),
            jobs.c.crashes + 1 >= self._core.settings.max_attempts,
            jobs.c.company != "joint",
        )
