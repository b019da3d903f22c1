"""Publishing a trained prefix: one transaction, guarded by the fence and by the owner being alive.

The gate's losses are compared by the trainer; the store adds only that the live version is still the one
that was compared with, else the new version waits as a candidate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, insert, select, update

from prefix_store.checkpoints import drop_checkpoint
from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import db_now
from prefix_store.failpoints import failpoint
from prefix_store.job_rows import Claim, add_event, held
from prefix_store.rows import change
from prefix_store.tables import datasets, job_sources, jobs, prefixes, version_sources, versions

RESULTS = "fine-tune-results"  # OpenAI's purpose of a job's result files
CHANGED = "another version went live while this one trained"


@dataclass(frozen=True, slots=True)
class ResultFile:
    """A file that tells how a run went; it may hold numbers, but no text of anybody's dataset."""

    filename: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeptFile:
    """A result file that lies in the owner's folder."""

    filename: str
    place: Place
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class TrainedPrefix:
    """What a finished run hands over: tensor bytes, `m` positions, where text starts, how prompts are framed.

    `files` become result files of the job. `metrics` are the measured numbers (held-out losses and so on), plain
    JSON values; `trained_tokens` counts
    completion and end tokens over all updates. What it learned from stands in the job, not here.
    """

    payload: bytes
    m: int
    position_offset: int
    template: dict[str, Any]
    metrics: dict[str, Any]
    trained_tokens: int | None = None
    files: Sequence[ResultFile] = ()


@dataclass(frozen=True, slots=True)
class Published:
    """The version that a job became; `reason` says why it was promoted or not."""

    full_name: str
    version_id: str
    promoted: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What the gate said, and against which live version (None: there was none)."""

    promote: bool
    compared_with: str | None
    reason: str


def publish(
    core: Core,
    connection: Connection,
    claim: Claim,
    job: Row[Any],
    trained: TrainedPrefix,
    decision: Decision,
    version_id: str,
    sha256: str,
    files: Sequence[KeptFile] = (),
) -> Published:
    """Insert the version, move the pointer, end the job, tell everybody; the file is written already."""
    mine = (
        prefixes.c.tenant_id == job.tenant_id,
        prefixes.c.owner_id == job.owner_id,
        prefixes.c.prefix_id == job.prefix_id,
    )
    counted = update(prefixes).where(*mine).values(last_number=prefixes.c.last_number + 1)
    prefix = connection.execute(counted.returning(prefixes)).one()
    unchanged = prefix.live_version_id == decision.compared_with
    promoted = decision.promote and unchanged
    reason = CHANGED if decision.promote and not unchanged else decision.reason
    full_name = f"{claim.job.prefix}@{prefix.last_number}"
    done = Published(full_name, version_id, promoted, reason)
    _insert_version(connection, job, trained, done, prefix.last_number, sha256)
    failpoint("publish.after_row")
    if promoted:
        connection.execute(update(prefixes).where(*mine).values(live_version_id=version_id))
    failpoint("publish.after_live")
    result = {"metrics": trained.metrics, "promoted": promoted, "trained_tokens": trained.trained_tokens}
    result["files"] = _insert_files(connection, job, files)
    values = {"status": "succeeded", "fine_tuned_model": full_name, "result": result, "lease_until": 0.0}
    connection.execute(update(jobs).where(*held(claim)).values(finished_at=db_now(), **values))
    drop_checkpoint(connection, job)
    _tell(connection, job, done)
    if promoted:
        change(connection, "version_live", job.tenant_id, job.owner_id, version_id)
    core.audit.record(connection, job.tenant_id, "worker", "version.published", version_id)
    failpoint("publish.told")
    return done


def _insert_files(connection: Connection, job: Row[Any], files: Sequence[KeptFile]) -> list[str]:
    ids = {"tenant_id": job.tenant_id, "owner_id": job.owner_id}
    for file in files:
        values = {"filename": file.filename, "purpose": RESULTS, "bytes": file.bytes, "sha256": file.sha256}
        statement = insert(datasets).values(
            id=file.place.object_id, rows=0, created_at=db_now(), **ids, **values
        )
        connection.execute(statement)
    return [file.place.object_id for file in files]


def _insert_version(
    connection: Connection, job: Row[Any], trained: TrainedPrefix, done: Published, number: int, sha256: str
) -> None:
    ids = {"tenant_id": job.tenant_id, "owner_id": job.owner_id, "version_id": done.version_id}
    kept = {"m": trained.m, "position_offset": trained.position_offset, "template": trained.template}
    origin = {"base_fingerprint": job.spec["base_fingerprint"], "job_id": job.id, "metrics": trained.metrics}
    values = {"prefix_id": job.prefix_id, "number": number, "was_live": done.promoted, "created_at": db_now()}
    file = {"sha256": sha256, "bytes": len(trained.payload)}
    connection.execute(insert(versions).values(**ids, **kept, **origin, **values, **file))
    learned = select(job_sources.c.dataset_id, job_sources.c.source_owner_id).where(
        job_sources.c.tenant_id == job.tenant_id, job_sources.c.job_id == job.id
    )
    rows = [
        {**ids, "dataset_id": row.dataset_id, "source_owner_id": row.source_owner_id}
        for row in connection.execute(learned)
    ]
    connection.execute(insert(version_sources), rows)


def _tell(connection: Connection, job: Row[Any], done: Published) -> None:
    data = {"fine_tuned_model": done.full_name, "promoted": done.promoted}
    made = f"New fine-tuned model created: {done.full_name}"
    add_event(connection, job, "info", "message", made, data)
    if done.promoted:
        add_event(connection, job, "info", "message", f"{done.full_name} is live: {done.reason}", data)
    else:
        text = f"{done.full_name} was not promoted and waits as a candidate: {done.reason}"
        add_event(connection, job, "warn", "message", text, data)
    add_event(connection, job, "info", "message", "The job has successfully completed", data)
