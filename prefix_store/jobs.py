"""Training jobs as their tenant sees them: made, looked at, cancelled. The worker's side is in leases.py."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select

from prefix_store.checkpoints import Checkpoint, checkpoint_of, tell_gone, with_checkpoint
from prefix_store.db import JOBS, db_now, of_all_owners, tell
from prefix_store.errors import Conflict, Invalid, NotFound, Quota
from prefix_store.evaluation import Evaluation
from prefix_store.failpoints import failpoint
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.idempotency import remember, replayed
from prefix_store.job_rows import (
    OPEN,
    Job,
    JobEvent,
    add_event,
    cancel_jobs,
    job_of,
    joined_jobs,
    reached_job,
    reached_jobs,
)
from prefix_store.leases import Leases
from prefix_store.litter import clear_soon
from prefix_store.names import check_name, new_id
from prefix_store.owners import find_owner, lock_owners, lock_tenant, owner_of
from prefix_store.rows import Change, next_number, one
from prefix_store.scope import Owner, Scope
from prefix_store.sources import insert_sources, sources_of
from prefix_store.tables import job_events, jobs, prefixes

_PAGE = 200


class Jobs(Leases):
    """Make, look at and cancel jobs; the worker's verbs are inherited."""

    def create(
        self,
        scope: Scope,
        owner: Owner,
        prefix_name: str,
        training_files: Sequence[str],
        validation_file: str | None = None,
        hyperparameters: Hyperparameters | None = None,
        seed: int = 0,
        start_version_id: str | None = None,
        base_fingerprint: str = "",
        suffix: str | None = None,
        metadata: Mapping[str, str] | None = None,
        method: Mapping[str, Any] | None = None,
        model: str = "",
        idempotency_key: str | None = None,
        evaluation: Evaluation | None = None,
        trace: Mapping[str, str] | None = None,
    ) -> Job:
        """Queue a job that trains the prefix `prefix_name` of `owner`; the prefix is made if it is new.

        A user's job takes its own files only; a task's job, which only a tenant-wide scope makes, also takes
        named users' files and records them as contributors. `start_version_id` is a version of the same
        owner and base. `model` is kept as the request called it, `trace` (`request_id`, `traceparent`) for the worker.

        Raises:
            NotFound: no such owner, file or start for this scope.
            Invalid: a bad prefix name or hyperparameter, no file, or a file of another owner.
            Conflict: base_mismatch; idempotency_mismatch.
            Quota: too many open jobs.
        """
        hyperparameters = hyperparameters or Hyperparameters()
        hyperparameters.check()
        spec = {
            "model": model,
            "training_files": list(training_files),
            "validation_file": validation_file,
            "hyperparameters": hyperparameters.to_json(),
            "seed": seed,
            "start_version_id": start_version_id,
            "base_fingerprint": base_fingerprint,
            "suffix": suffix,
            "metadata": dict(metadata) if metadata is not None else None,
            "method": dict(method) if method is not None else None,
        }
        if (
            evaluation is not None
        ):  # a request without one stays, to its Idempotency-Key, what it was to older code
            spec["evaluation"] = evaluation.to_json()
        _check_prefix(owner, prefix_name, self._core.settings.reserved_names)
        request = hashlib.sha256(json.dumps([prefix_name, spec], sort_keys=True).encode()).hexdigest()
        spec["trace"] = dict(trace or {})  # not of what an Idempotency-Key stands for
        with self._core.database.write(scope.reach) as connection:
            ids = (owner.tenant_id, owner.owner_id)
            if owner_of(find_owner(connection, scope, owner.label)) != owner:
                raise NotFound("owner", owner.label)
            tenant = lock_tenant(connection, owner.tenant_id)
            before = replayed(connection, *ids, idempotency_key, request)
            if before is not None:
                return _get(connection, scope, before)
            sources = sources_of(connection, scope, owner, spec)
            lock_owners(connection, ids[0], {owner.owner_id, *(source.owner_id for source in sources)})
            with of_all_owners(connection, scope.reach):
                _check_quota(connection, tenant)
            row = _insert(connection, owner, _prefix_id(connection, owner, prefix_name), spec)
            insert_sources(connection, row, sources)
            add_event(connection, row, "info", "message", f"Created fine-tuning job: {row.id}")
            remember(connection, *ids, idempotency_key, request, row.id)
            self._core.audit.record(connection, owner.tenant_id, scope.key_id, "job.created", row.id)
            failpoint("job.after_row")
            tell(connection, JOBS)
            return _get(connection, scope, row.id)

    def get(self, scope: Scope, job_id: str) -> Job:
        """Return one job; NotFound if absent or another's."""
        with self._core.database.read(scope.reach) as connection:
            return _get(connection, scope, job_id)

    def list(
        self,
        scope: Scope,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | None = None,
    ) -> Sequence[Job]:
        """Jobs that `scope` reaches, newest first, behind the job `after`, with all of `metadata`.

        Raises:
            NotFound: `after` is absent or another's.
        """
        found: list[Job] = []
        with self._core.database.read(scope.reach) as connection:
            last = None if after is None else reached_job(connection, scope, after).seq
            while len(found) < limit:
                where = [*reached_jobs(scope), *([] if last is None else [jobs.c.seq < last])]
                page = joined_jobs().where(*where).order_by(jobs.c.seq.desc()).limit(_PAGE)
                rows = connection.execute(page).all()
                found += [job for job in map(job_of, rows) if _bears(job, metadata)]
                if len(rows) < _PAGE:
                    break
                last = rows[-1].seq
        return found[:limit]

    def cancel(self, scope: Scope, job_id: str, *, clear: bool = True) -> tuple[Job, Change | None]:
        """End a job at once; its worker notices at its next heartbeat and can publish nothing.

        The change is None for a job that has never run: nobody answers from it. Without `clear` the bytes of its
        checkpoint are left to `Erasures.clear`.

        Raises:
            NotFound: absent or another's.
            Conflict: it has ended.
        """
        with self._core.database.write(scope.reach) as connection:
            row = reached_job(connection, scope, job_id)
            mine = (jobs.c.tenant_id == row.tenant_id) & (jobs.c.id == job_id)
            ended = cancel_jobs(connection, mine, "Fine-tuning job cancelled")
            if not ended:
                raise Conflict("job_ended", f"job {job_id} has ended: {row.status}")
            told = tell_gone(connection, ended)
            self._core.audit.record(connection, scope.tenant_id, scope.key_id, "job.cancelled", job_id)
            job = _get(connection, scope, job_id)
        if clear:
            clear_soon(self._core, scope.tenant_id)
        return job, told[-1] if told else None

    def checkpoints(self, scope: Scope, job_id: str) -> Sequence[Checkpoint]:
        """The last checkpoint of an open job, if it has one that can be called; NotFound as in `get`."""
        with self._core.database.read(scope.reach) as connection:
            found = checkpoint_of(reached_job(connection, scope, job_id, with_checkpoint(joined_jobs())))
        return [] if found is None else [found]

    def events(
        self, scope: Scope, job_id: str, after: str | None = None, limit: int = 20
    ) -> Sequence[JobEvent]:
        """Events of a job, newest first, behind the event `after`.

        Raises:
            NotFound: the job or `after` is absent or another's.
        """
        with self._core.database.read(scope.reach) as connection:
            job = reached_job(connection, scope, job_id)
            where = [job_events.c.tenant_id == job.tenant_id, job_events.c.job_id == job_id]
            if after is not None:
                last = select(job_events.c.seq).where(*where, job_events.c.id == after)
                seq = connection.execute(last).scalar()
                if seq is None:
                    raise NotFound("event", after)
                where.append(job_events.c.seq < seq)
            newest = select(job_events).where(*where).order_by(job_events.c.seq.desc()).limit(limit)
            return [
                JobEvent(row.id, row.created_at, row.level, row.type, row.message, row.data)
                for row in connection.execute(newest)
            ]


def _check_prefix(owner: Owner, name: str, reserved: frozenset[str]) -> None:
    check_name(name, "suffix", reserved)
    if owner.kind == "task" and name != owner.name:
        raise Invalid("prefix", "a task's prefix has the task's name")


def _get(connection: Connection, scope: Scope, job_id: str) -> Job:
    return job_of(reached_job(connection, scope, job_id))


def _bears(job: Job, metadata: Mapping[str, str] | None) -> bool:
    return not metadata or metadata.items() <= (job.metadata or {}).items()


def _check_quota(connection: Connection, tenant: Row[Any]) -> None:
    waiting = select(func.count()).where(jobs.c.tenant_id == tenant.id, jobs.c.status.in_(OPEN))
    count = int(connection.execute(waiting).scalar_one())
    if count >= tenant.max_jobs:
        raise Quota(f"{count} jobs are open, {tenant.max_jobs} may be; wait for one to end or cancel one")


def _prefix_id(connection: Connection, owner: Owner, name: str) -> str:
    of_name = (
        prefixes.c.tenant_id == owner.tenant_id,
        prefixes.c.owner_id == owner.owner_id,
        prefixes.c.name == name,
    )
    row = one(connection, select(prefixes.c.prefix_id).where(*of_name, prefixes.c.deleted_at.is_(None)))
    if row is not None:
        return str(row.prefix_id)
    used = select(func.coalesce(func.max(prefixes.c.last_number), 0)).where(*of_name).scalar_subquery()
    ids = {"tenant_id": owner.tenant_id, "owner_id": owner.owner_id, "prefix_id": new_id("pre")}
    connection.execute(insert(prefixes).values(name=name, last_number=used, created_at=db_now(), **ids))
    return ids["prefix_id"]


def _insert(connection: Connection, owner: Owner, prefix_id: str, spec: Mapping[str, Any]) -> Row[Any]:
    ids = {"tenant_id": owner.tenant_id, "owner_id": owner.owner_id, "id": new_id("ftjob")}
    values = {"prefix_id": prefix_id, "status": "queued", "spec": spec, "attempt": 0, "crashes": 0}
    times = {"run_at": db_now(), "lease_until": 0.0, "created_at": db_now()}
    statement = insert(jobs).values(seq=next_number(connection, "jobs"), **ids, **values, **times)
    return connection.execute(statement.returning(jobs)).one()
