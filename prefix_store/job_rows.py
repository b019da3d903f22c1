"""Training jobs as their rows stand: read, tell an event, end. Private to the store's parts."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, Select, exists, insert, select, update

from prefix_store.checkpoints import drop_checkpoints
from prefix_store.db import db_now
from prefix_store.errors import Invalid, NotFound
from prefix_store.evaluation import Evaluation
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.names import new_id, prefix_name
from prefix_store.rows import one
from prefix_store.scope import Owner, Scope
from prefix_store.tables import LIVE, job_events, jobs, owners, prefixes

JobStatus = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OPEN: tuple[JobStatus, ...] = ("queued", "running")


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed; `param` names the field of the request that is to blame, if one is."""

    code: str
    message: str
    param: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One job.

    `prefix` is the bare name that it trains (`alice:voice`), `model` what the request called its start,
    `fine_tuned_model` the version it became (`alice:voice@3`), `resolved` the hyperparameters that its last attempt
    goes by, None before one has begun. Times are seconds by the database's clock. `trace` names the request that made it.
    `later`: a later release made it, with fields or values that this one does not know; it shows the others, and is not
    to train it.
    """

    id: str
    owner: Owner
    prefix: str
    model: str
    status: JobStatus
    training_files: tuple[str, ...]
    validation_file: str | None
    hyperparameters: Hyperparameters
    resolved: dict[str, Any] | None
    evaluation: Evaluation | None
    seed: int
    start_version_id: str | None
    base_fingerprint: str
    suffix: str | None
    metadata: dict[str, str] | None
    method: dict[str, Any] | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    result_files: tuple[str, ...]
    error: JobError | None
    fine_tuned_model: str | None
    promoted: bool | None
    trained_tokens: int | None
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    trace: dict[str, str] = field(default_factory=dict)
    later: bool = False


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job; `type` is message or metrics, `level` info, warn or error."""

    id: str
    created_at: float
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class Claim:
    """A job held by one worker until its lease runs out; `attempt` is the fence and never comes twice.

    `joint`: others' jobs may be trained in its process.
    """

    job_id: str
    attempt: int
    owner: Owner
    job: Job
    prefix_id: str
    joint: bool = False


def job_of(row: Row[Any]) -> Job:
    """Read a job from a row of `joined_jobs`."""
    owner = Owner(row.tenant_id, row.owner_id, row.owner_kind, row.owner_name)
    spec, result = row.spec, row.result or {}
    hyperparameters, evaluation, later = _wishes(spec)
    return Job(
        id=row.id,
        owner=owner,
        prefix=prefix_name(owner.kind, owner.name, row.prefix_name),
        model=spec["model"],
        status=row.status,
        training_files=tuple(spec["training_files"]),
        validation_file=spec["validation_file"],
        hyperparameters=hyperparameters,
        resolved=spec.get("resolved"),
        evaluation=evaluation,
        seed=spec["seed"],
        start_version_id=spec["start_version_id"],
        base_fingerprint=spec["base_fingerprint"],
        suffix=spec["suffix"],
        metadata=spec["metadata"],
        method=spec["method"],
        progress=row.progress,
        result=result.get("metrics"),
        result_files=tuple(result.get("files", ())),
        error=_error(row.error),
        fine_tuned_model=row.fine_tuned_model,
        promoted=result.get("promoted"),
        trained_tokens=result.get("trained_tokens"),
        attempt=row.attempt,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        trace=spec.get("trace", {}),
        later=later,
    )


def _wishes(spec: dict[str, Any]) -> tuple[Hyperparameters, Evaluation | None, bool]:
    """What the request wished, and whether that is of a later release; what is not known of it is left out."""
    hyperparameters, later = Hyperparameters.of_row(spec["hyperparameters"])
    asked = spec.get("evaluation")
    try:
        return hyperparameters, None if asked is None else Evaluation.from_json(asked), later
    except Invalid:
        return hyperparameters, None, True


def _error(told: dict[str, Any] | None) -> JobError | None:
    """Why it failed, less what a later release says more of it."""
    names = {of.name for of in fields(JobError)}
    return JobError(**{name: value for name, value in told.items() if name in names}) if told else None


def joined_jobs() -> Select[Any]:
    """Jobs of live owners with the names that they are shown by; a deleted prefix keeps its job history."""
    owner = (owners.c.tenant_id == jobs.c.tenant_id) & (owners.c.owner_id == jobs.c.owner_id)
    prefix = (
        (prefixes.c.tenant_id == jobs.c.tenant_id)
        & (prefixes.c.owner_id == jobs.c.owner_id)
        & (prefixes.c.prefix_id == jobs.c.prefix_id)
    )
    columns = (
        owners.c.kind.label("owner_kind"),
        owners.c.name.label("owner_name"),
        prefixes.c.name.label("prefix_name"),
    )
    tables = jobs.join(owners, owner).join(prefixes, prefix)
    return select(jobs, *columns).select_from(tables).where(owners.c.state == LIVE)


def reached_jobs(scope: Scope) -> list[ColumnElement[bool]]:
    """Jobs that a scope reaches: the tenant's, or those of its user's own prefixes."""
    where = [jobs.c.tenant_id == scope.tenant_id]
    if scope.user is not None:
        where.append(jobs.c.owner_id == scope.user.owner_id)
    return where


def reached_job(connection: Connection, scope: Scope, job_id: str, of: Select[Any] | None = None) -> Row[Any]:
    """One row of `joined_jobs`, or of what `of` makes of it; NotFound if absent or another's."""
    statement = joined_jobs() if of is None else of
    row = one(connection, statement.where(jobs.c.id == job_id, *reached_jobs(scope)))
    if row is None:
        raise NotFound("job", job_id)
    return row


def add_event(
    connection: Connection,
    row: Row[Any],
    level: str,
    kind: str,
    message: str,
    data: dict[str, Any] | None = None,
) -> None:
    """Append an event to a job within the caller's transaction."""
    ids = {"tenant_id": row.tenant_id, "owner_id": row.owner_id, "job_id": row.id}
    values = {"level": level, "type": kind, "message": message, "data": data}
    connection.execute(insert(job_events).values(id=new_id("ftevent"), created_at=db_now(), **ids, **values))


def cancel_jobs(connection: Connection, which: ColumnElement[bool], reason: str) -> Sequence[Row[Any]]:
    """Cancel the open ones of these jobs within the caller's transaction; return them, for `tell_gone`.

    Their workers can write nothing from the commit on and notice at the next heartbeat; `lease_until` stays,
    so that an erasure knows who may still hold data in memory.
    """
    columns = (jobs.c.tenant_id, jobs.c.owner_id, jobs.c.id, jobs.c.attempt)
    statement = update(jobs).where(which, jobs.c.status.in_(OPEN))
    ended = connection.execute(
        statement.values(status="cancelled", finished_at=db_now()).returning(*columns)
    ).all()
    if ended:
        told = {"level": "info", "type": "message", "message": reason, "data": None}
        events = [
            {"tenant_id": row.tenant_id, "owner_id": row.owner_id, "job_id": row.id, "id": new_id("ftevent")}
            for row in ended
        ]
        connection.execute(insert(job_events).values(created_at=db_now(), **told), events)
        drop_checkpoints(connection, which & (jobs.c.status == "cancelled"))
    return ended


def held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    """The job is still running under this claim and its owner is alive."""
    alive = exists().where(
        owners.c.tenant_id == jobs.c.tenant_id,
        owners.c.owner_id == jobs.c.owner_id,
        owners.c.state == LIVE,
    )
    return (
        jobs.c.tenant_id == claim.owner.tenant_id,
        jobs.c.owner_id == claim.owner.owner_id,
        jobs.c.id == claim.job_id,
        jobs.c.status == "running",
        jobs.c.attempt == claim.attempt,
        alive,
    )
