"""A job's latest checkpoint: the state for its next attempt, and the best prefix so far, to be called meanwhile.

Both are sealed files under ids that are never given twice, so that what a process holds of one checkpoint is never
taken for another's. A checkpoint goes when the next one is kept and when its job ends. Private to the store's parts.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    Table,
    and_,
    bindparam,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import db_now
from prefix_store.errors import Corrupt, NoCheckpoint, NotFound, Unanswered
from prefix_store.intents import beside, withdraw
from prefix_store.litter import note
from prefix_store.names import ModelName, prefix_name
from prefix_store.rows import Change, change, one
from prefix_store.scope import Owner, Scope
from prefix_store.tables import checkpoints, jobs, prefixes
from prefix_store.version_rows import Resolved, name_values, named, resolved_of

if TYPE_CHECKING:
    from prefix_store.publish import TrainedPrefix


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The prefix of a checkpoint as it is listed.

    `name` is what it is called by as long as its job is open (`alice:voice@ftjob-...`); `step` counts the updates
    that led to it; `metrics` are what the trainer measured then.
    """

    id: str
    job_id: str
    name: str
    step: int
    m: int
    metrics: dict[str, Any]
    created_at: float


@dataclass(frozen=True, slots=True)
class Sealed:
    """A file that was written before its row: where it lies, and the SHA-256 of its plaintext."""

    place: Place
    sha256: str


def seal(
    core: Core, files: Iterable[tuple[Place, bytes]], put: Callable[[Place, bytes], str]
) -> list[Sealed]:
    """Write files by `put`, which announces each, all or none; whoever does not keep them withdraws them.

    One that the storage did not answer is written anew, once, in another place: they are where the result says.
    """
    written: list[Sealed] = []
    try:
        for place, payload in files:
            written.append(_sealed(place, payload, put))
    except Exception:  # a worker holds on to what it has trained and tries again: no litter each time
        withdraw(core, [file.place for file in written])
        raise
    return written


def _sealed(place: Place, payload: bytes, put: Callable[[Place, bytes], str]) -> Sealed:
    try:
        return Sealed(place, put(place, payload))
    except Unanswered:
        elsewhere = beside(place)
        return Sealed(elsewhere, put(elsewhere, payload))


def load_state(core: Core, owner: Owner, job_id: str) -> bytes | None:
    """The state of a job's checkpoint; None if there is none that can be read: the run begins anew, and ends the same."""
    mine = (checkpoints.c.tenant_id == owner.tenant_id, checkpoints.c.job_id == job_id)
    with core.database.read(owner.reach) as connection:
        row = one(connection, select(checkpoints).where(*mine))
    if row is None:
        return None
    try:
        return core.blobs.read(Place(row.tenant_id, row.owner_id, row.object_id), row.sha256)
    except Corrupt:
        return None


def replace_checkpoint(
    connection: Connection,
    job: Row[Any],
    update_number: int,
    state: Sealed,
    file: Sealed | None,
    best: "TrainedPrefix | None",
) -> None:
    """Keep a checkpoint of a job whose row is locked, and note the files of the one before.

    `best` is the prefix in `file`; without them the one that was kept before stays.
    """
    before = one(connection, select(checkpoints).where(*_of(job)))
    values: dict[str, Any] = {
        "object_id": state.place.object_id,
        "sha256": state.sha256,
        "update_number": update_number,
        "created_at": db_now(),
    }
    if file is not None and best is not None:
        values |= {
            "prefix_object_id": file.place.object_id,
            "prefix_sha256": file.sha256,
            "prefix_at": db_now(),
            "m": best.m,
            "position_offset": best.position_offset,
            "base_fingerprint": job.spec["base_fingerprint"],
            "template": best.template,
            "metrics": best.metrics,
        }
    if before is None:
        ids = {"tenant_id": job.tenant_id, "owner_id": job.owner_id, "job_id": job.id}
        connection.execute(insert(checkpoints).values(**ids, **values))
        return
    connection.execute(update(checkpoints).where(*_of(job)).values(**values))
    gone = [before.object_id, None if file is None else before.prefix_object_id]
    note(connection, _places(job, gone))


def drop_checkpoint(connection: Connection, job: Row[Any]) -> None:
    """Remove a job's checkpoint within the caller's transaction and note its files."""
    _drop(connection, and_(*_of(job)))


def drop_checkpoints(connection: Connection, which: ColumnElement[bool]) -> None:
    """The same for many jobs by a condition, in one statement."""
    key = tuple_(checkpoints.c.tenant_id, checkpoints.c.owner_id, checkpoints.c.job_id)
    _drop(connection, key.in_(select(jobs.c.tenant_id, jobs.c.owner_id, jobs.c.id).where(which)))


def _drop(connection: Connection, which: ColumnElement[bool]) -> None:
    dropped = delete(checkpoints).where(which).returning(checkpoints)
    rows = connection.execute(dropped).all()
    note(connection, [place for row in rows for place in _places(row, (row.object_id, row.prefix_object_id))])


def tell_gone(connection: Connection, ended: Iterable[Row[Any]]) -> list[Change]:
    """Have answers from checkpoints of these jobs end: they were cancelled or have failed.

    The last but the audit in a transaction: it takes the lock on the feed's counter, behind all rows.
    """
    return [
        change(connection, "version_gone", row.tenant_id, row.owner_id, job_id=row.id)
        for row in ended
        if row.attempt  # else it never ran
    ]


def checkpoint_of(row: Row[Any]) -> Checkpoint | None:
    """The checkpoint of a row of `with_checkpoint`; None if it has none that can be called."""
    if row.prefix_object_id is None:
        return None
    bare = prefix_name(row.owner_kind, row.owner_name, row.prefix_name)
    name, step = f"{bare}@{row.id}", row.checkpoint_metrics["step"]
    facts = (step, row.checkpoint_m, row.checkpoint_metrics, row.prefix_at)
    return Checkpoint(row.prefix_object_id, row.id, name, *facts)


def with_checkpoint(of_jobs: Select[Any]) -> Select[Any]:
    """A select from jobs with the columns of their checkpoints' prefixes."""
    kept = _same(checkpoints, jobs) & (checkpoints.c.job_id == jobs.c.id)
    columns = (
        checkpoints.c.prefix_object_id,
        checkpoints.c.prefix_sha256,
        checkpoints.c.prefix_at,
        checkpoints.c.m.label("checkpoint_m"),
        checkpoints.c.position_offset.label("checkpoint_offset"),
        checkpoints.c.base_fingerprint.label("checkpoint_base"),
        checkpoints.c.template.label("checkpoint_template"),
        checkpoints.c.metrics.label("checkpoint_metrics"),
    )
    return of_jobs.outerjoin(checkpoints, kept).add_columns(*columns)


def resolve_job(connection: Connection, scope: Scope, name: str, parsed: ModelName) -> Resolved:
    """What a job's name means now: its last checkpoint while it is open, the version that it became afterwards.

    A user's key reaches jobs of its own prefixes alone, not those of tasks.

    Raises:
        NoCheckpoint: the job is there, but has come to nothing that can be called by this name.
        NotFound: no such prefix or job for this scope.
    """
    row = one(connection, _named_job(of_user=scope.user is not None), name_values(scope, parsed))
    if row is None:
        raise NotFound("model", name)
    if row.job_status == "succeeded" and row.version_id is not None and parsed.step is None:
        return resolved_of(row)
    if row.job_status not in {"queued", "running"} or row.prefix_object_id is None:
        _refuse(name, parsed, row)
    step = row.checkpoint_metrics["step"]
    if parsed.step not in {None, step}:
        raise NoCheckpoint("model", name, f"; the last checkpoint of the job is that of step {step}")
    owner = Owner(row.p_tenant_id, row.p_owner_id, row.owner_kind, row.owner_name)
    return Resolved(
        row.prefix_object_id,
        None,
        parsed.bare,
        f"{parsed.bare}@{parsed.job}-step-{step}",
        owner,
        row.checkpoint_m,
        row.checkpoint_offset,
        row.checkpoint_base,
        row.checkpoint_template,
        row.prefix_sha256,
        parsed.job,
    )


@cache
def standing_checkpoint() -> Select[Any]:
    """The id of a checkpoint's prefix, if it is its job's last; to be run with `tenant`, `owner` and `version`."""
    return select(checkpoints.c.prefix_object_id).where(
        checkpoints.c.tenant_id == bindparam("tenant"),
        checkpoints.c.owner_id == bindparam("owner"),
        checkpoints.c.prefix_object_id == bindparam("version"),
    )


@cache
def _named_job(*, of_user: bool) -> Select[Any]:
    mine = _same(jobs, prefixes) & (jobs.c.prefix_id == prefixes.c.prefix_id)
    named_so = named(of_user=of_user, tasks_too=False, which="job")
    return with_checkpoint(
        named_so.join(jobs, mine & (jobs.c.id == bindparam("job"))).add_columns(
            jobs.c.status.label("job_status")
        )
    )


def _refuse(name: str, parsed: ModelName, row: Row[Any]) -> NoReturn:
    if row.job_status in {"queued", "running"}:
        why = f"the job is {row.job_status} and has no checkpoint yet; try again later"
    elif row.job_status != "succeeded":
        why = f"the job is {row.job_status} and has left no checkpoint"
    elif row.version_id is None:
        why = "the version that the job became was deleted"
    else:
        why = f"the job has ended; call what it became by {parsed.bare}@{row.number}"
    raise NoCheckpoint("model", name, f": {why}")


def _of(job: Row[Any]) -> tuple[ColumnElement[bool], ...]:
    return (
        checkpoints.c.tenant_id == job.tenant_id,
        checkpoints.c.owner_id == job.owner_id,
        checkpoints.c.job_id == job.id,
    )


def _same(one_table: Table, other: Table) -> ColumnElement[bool]:
    """Rows of one owner."""
    same: ColumnElement[bool] = (one_table.c.tenant_id == other.c.tenant_id) & (
        one_table.c.owner_id == other.c.owner_id
    )
    return same


def _places(job: Row[Any], object_ids: Iterable[str | None]) -> list[Place]:
    return [Place(job.tenant_id, job.owner_id, object_id) for object_id in object_ids if object_id]
