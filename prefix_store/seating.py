"""How a job is taken: by one statement, and into which company.

A job's `company` is `open` (as its tenant lets), `joint` (claimed into a process where others may be) or `alone`
(a process that it shared died, so that it is trained alone from then on).
"""

from typing import Literal

from sqlalchemy import Update, case, false, func, true, update

from prefix_store.db import db_now
from prefix_store.job_rows import may_join, next_job
from prefix_store.settings import StoreSettings
from prefix_store.tables import jobs

_TAKEN = (
    jobs.c.tenant_id,
    jobs.c.owner_id,
    jobs.c.id,
    jobs.c.prefix_id,
    jobs.c.attempt,
    jobs.c.company,
    jobs.c.started_at,
)
Seating = Literal["alone", "first", "beside"]


def take(worker: str, seating: Seating, settings: StoreSettings) -> Update:
    """One statement, both dialects: choose, lock, take; returns whose the job is, which, and how it was taken. See `Leases.claim`."""
    expired = jobs.c.status == "running"  # else it was queued
    joint = jobs.c.company == "joint"  # the process that it was trained in with others is gone
    together = false() if seating == "alone" else may_join()
    chosen = next_job(settings.max_attempts).scalar_subquery()
    return (
        update(jobs)
        .where(jobs.c.id == chosen, together if seating == "beside" else true())
        .values(
            status="running",
            attempt=jobs.c.attempt + 1,
            crashes=jobs.c.crashes + case((expired & ~joint, 1), else_=0),
            company=case((joint, "alone"), (together, "joint"), else_=jobs.c.company),
            worker=worker,
            lease_until=db_now() + settings.lease_seconds,
            started_at=func.coalesce(jobs.c.started_at, db_now()),
        )
        .returning(*_TAKEN)
    )
