"""How a job is taken: which is next, by one statement, and into which company.

A job's `company` is `open` (as its tenant lets), `joint` (claimed into a process where others may be) or `alone`
(a process that it shared died, so that it is trained alone from then on).
"""

from typing import Any, Literal

from sqlalchemy import (
    ColumnElement,
    Select,
    Subquery,
    Update,
    case,
    exists,
    false,
    func,
    select,
    true,
    update,
)

from prefix_store.db import db_now
from prefix_store.settings import StoreSettings
from prefix_store.tables import LIVE, jobs, owners, tenants

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


_job, _other = jobs.alias("job"), jobs.alias("other")


def may_join() -> ColumnElement[bool]:
    """A job may be trained in one process with others': its tenant lets it, and no such process died with it."""
    lets = select(tenants.c.id).where(tenants.c.id == jobs.c.tenant_id, tenants.c.joint_training)
    return lets.exists() & (jobs.c.company == "open")


def _loads() -> Subquery:
    """How many jobs of each tenant run, of those that have some: counted once, not for each job that waits."""
    running = (_other.c.status == "running", _other.c.lease_until > db_now())
    counted = select(_other.c.tenant_id, func.count().label("running")).where(*running)
    return counted.group_by(_other.c.tenant_id).subquery("loads")


def _with(loads: Subquery) -> Select[Any]:
    """Jobs that nothing but their turn keeps from being taken, if their own state lets them."""
    busy = select(_other.c.id).where(
        _other.c.prefix_id == _job.c.prefix_id, _other.c.status == "running", _other.c.id != _job.c.id
    )
    alive = select(owners.c.owner_id).where(
        owners.c.tenant_id == _job.c.tenant_id, owners.c.owner_id == _job.c.owner_id, owners.c.state == LIVE
    )
    tables = _job.outerjoin(loads, loads.c.tenant_id == _job.c.tenant_id)
    return select(_job.c.id).select_from(tables).where(~busy.exists(), alive.exists())


def _free(max_attempts: int, waited_seconds: float = 0.0) -> ColumnElement[bool]:
    """Nobody has the job, for so long at least: it is queued, or its worker's lease ran out."""
    since = db_now() - waited_seconds
    ready = (_job.c.status == "queued") & (_job.c.run_at <= since)
    spared = (_job.c.company == "joint") | (_job.c.crashes + 1 < max_attempts)
    return ready | (_job.c.status == "running") & (_job.c.lease_until <= since) & spared


def _next_job(max_attempts: int, behind: str | None) -> Select[Any]:
    """Id of the job to be claimed next, locked: of the tenant with the fewest running, then the oldest.

    The tenant `behind` counts as if it had one more.
    """
    loads = _loads()
    load: ColumnElement[int] = func.coalesce(loads.c.running, 0)
    if behind is not None:
        load = load + case((_job.c.tenant_id == behind, 1), else_=0)
    found = _with(loads).where(_free(max_attempts)).order_by(load, _job.c.run_at, _job.c.seq)
    return found.limit(1).with_for_update(skip_locked=True, of=_job)


def another_waits(tenant_id: str, waited_seconds: float, max_attempts: int) -> Select[Any]:
    """Whether a job waits that would be next if a running one of this tenant were given back, and the tenant let it by."""
    loads = _loads()
    running = (_other.c.status == "running", _other.c.lease_until > db_now(), _other.c.tenant_id == tenant_id)
    own = select(func.count()).select_from(_other).where(*running).scalar_subquery()
    waits = (
        _free(max_attempts, waited_seconds),
        _job.c.tenant_id != tenant_id,
        func.coalesce(loads.c.running, 0) < own,
    )
    return select(exists(_with(loads).where(*waits)))


def take(worker: str, seating: Seating, settings: StoreSettings, behind: str | None = None) -> Update:
    """One statement, both dialects: choose, lock, take; returns whose the job is, which, and how it was taken. See `Leases.claim`."""
    expired = jobs.c.status == "running"  # else it was queued
    joint = jobs.c.company == "joint"  # the process that it was trained in with others is gone
    together = false() if seating == "alone" else may_join()
    chosen = _next_job(settings.max_attempts, behind).scalar_subquery()
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
