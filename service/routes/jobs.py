"""`/v1/fine_tuning/jobs`: training jobs in OpenAI's shape."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request

from prefix_store.errors import NotFound
from prefix_store.evaluation import Evaluation
from prefix_store.failpoints import failpoint
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.names import parse_model, parse_owner
from prefix_store.scope import Owner, Scope
from service.deletion import reached_all
from service.deps import After, IdempotencyKey, PartsDep, Trainer, listed, page, resolve, shown
from service.erasing import clear
from service.errors import ApiError
from service.job_answers import CHECKPOINT, EVENT, EXAMPLE, checkpoint_json, event_json, job_json
from service.parts import Parts
from service.schemas import JobBody
from service.shapes import CheckpointShown, EventShown, JobShown, Page

router = APIRouter(tags=["fine-tuning"])

MOST_BYTES = 4  # times the largest upload, for all files of a job together


@router.post("/v1/fine_tuning/jobs", responses=shown(EXAMPLE, 404, 409, 422, 429))
def create_job(
    request: Request, parts: PartsDep, scope: Trainer, body: JobBody, idempotency_key: IdempotencyKey = None
) -> JobShown:
    """Queue the training of a prefix."""
    wishes = Hyperparameters.from_json(_merged(body))
    evaluation = None if body.evaluation is None else Evaluation.from_json(body.evaluation)
    label, prefix = _target(scope, body)
    start = _start(parts, scope, body.model, label)
    files = [body.training_file] if isinstance(body.training_file, str) else list(body.training_file)
    _check_files(parts, scope, files, body.validation_file)
    job = parts.store.jobs.create(
        scope,
        _owner(parts, scope, label),
        prefix,
        files,
        validation_file=body.validation_file,
        hyperparameters=wishes,
        seed=secrets.randbelow(1 << 31) if body.seed is None and idempotency_key is None else body.seed or 0,
        start_version_id=start,
        base_fingerprint=parts.base.fingerprint,
        suffix=body.suffix,
        metadata=body.metadata,
        method=body.method.model_dump(exclude_none=True) if body.method is not None else None,
        model=body.model,
        idempotency_key=idempotency_key,
        evaluation=evaluation,
        trace=_trace(request, parts),
    )
    failpoint("service.job_made")
    return job_json(job)


def _trace(request: Request, parts: Parts) -> dict[str, str]:
    """What the worker's log and spans name as their origin."""
    carrier = {} if parts.traces is None else parts.traces.carrier()
    return {"request_id": request.state.request_id, **carrier}


def _check_files(parts: Parts, scope: Scope, files: list[str], validation: str | None) -> None:
    """Refuse absent files before a task is made for a job that cannot be, and more than a worker can hold."""
    if len(set(files)) < len(files):
        raise ApiError(400, "invalid_value", "training_file: a file is named twice", "training_file")
    ids = [*files, *([validation] if validation else [])]
    size = sum(parts.store.datasets.get(scope, file_id).bytes for file_id in ids)
    most = MOST_BYTES * parts.store.settings.max_upload_bytes
    if size > most:
        text = f"the files of one job may have {most} bytes together, these have {size}; use fewer"
        raise ApiError(400, "invalid_value", text, "training_file")


def _merged(body: JobBody) -> dict[str, Any]:
    """Hyperparameters of both places; the same one in both could contradict itself."""
    top = body.hyperparameters or {}
    method = body.method
    nested = (method.supervised.hyperparameters if method and method.supervised else None) or {}
    for name in top:
        if name in nested:
            text = f"{name} is given twice; give it in hyperparameters or in method, not in both"
            raise ApiError(400, "invalid_value", text, f"hyperparameters.{name}")
    return {**top, **nested}


def _target(scope: Scope, body: JobBody) -> tuple[str, str]:
    """Label of the owner and name of the prefix that the job trains."""
    if body.prefix is not None:
        if body.suffix is not None:
            raise ApiError(400, "invalid_value", "give suffix or prefix, not both", "suffix")
        parsed = parse_model(body.prefix)
        if parsed is None or parsed.version is not None or parsed.job is not None:
            text = "prefix must be a full name without a version, alice:brand-voice or task:e2e"
            raise ApiError(400, "invalid_value", text, "prefix")
        label = parsed.owner_name if parsed.owner_kind == "user" else f"task:{parsed.owner_name}"
        return label, parsed.prefix
    if scope.user is None:
        text = "with a tenant's key give prefix: the full name, alice:brand-voice or task:e2e"
        raise ApiError(400, "missing_required_parameter", text, "prefix")
    if body.suffix is None:
        text = "suffix is missing; it names the prefix: brand-voice makes alice:brand-voice"
        raise ApiError(400, "missing_required_parameter", text, "suffix")
    return scope.user.label, body.suffix


def _start(parts: Parts, scope: Scope, model: str, label: str) -> str | None:
    """Version that the job goes on from: one of the same owner, or none for the base model."""
    if model == parts.base.name:
        return None
    resolved = resolve(parts, scope, model)
    if resolved.owner.label != label:
        raise NotFound("model", model)
    if resolved.number is None:
        text = "a job cannot start from a checkpoint; wait for its job's end and start from the version"
        raise ApiError(400, "invalid_value", text, "model")
    return resolved.version_id


def _owner(parts: Parts, scope: Scope, label: str) -> Owner:
    kind, name = parse_owner(label) or ("user", "")
    if kind == "task" and scope.user is None:
        return parts.store.owners.ensure_task(scope, name)
    return parts.store.owners.get(scope, label)


@router.get("/v1/fine_tuning/jobs", responses=shown(listed(EXAMPLE), 404))
def list_jobs(
    request: Request,
    parts: PartsDep,
    scope: Trainer,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Page[JobShown]:
    """Jobs, newest first; `metadata[key]=value` keeps those that bear it."""
    wanted = _metadata(request.query_params)
    found = parts.store.jobs.list(scope, after, limit + 1, wanted or None)
    return page([job_json(job) for job in found], limit)


def _metadata(params: Mapping[str, str]) -> dict[str, str]:
    return {
        name[len("metadata[") : -1]: value
        for name, value in params.items()
        if name.startswith("metadata[") and name.endswith("]")
    }


@router.get("/v1/fine_tuning/jobs/{job_id}", responses=shown(EXAMPLE, 404))
def get_job(parts: PartsDep, scope: Trainer, job_id: str) -> JobShown:
    """One job with its progress or result."""
    return job_json(parts.store.jobs.get(scope, job_id))


@router.post(
    "/v1/fine_tuning/jobs/{job_id}/cancel", responses=shown({**EXAMPLE, "status": "cancelled"}, 404, 409)
)
async def cancel_job(parts: PartsDep, scope: Trainer, job_id: str) -> JobShown:
    """End a job; nothing of it is published afterwards, and answers of its checkpoints end."""
    job, told = await parts.turns.run(scope, lambda: parts.store.jobs.cancel(scope, job_id, clear=False))
    if told is not None:
        await reached_all(parts, told.seq)
    await clear(parts, scope)
    return job_json(job)


@router.get(
    "/v1/fine_tuning/jobs/{job_id}/checkpoints",
    responses=shown(listed(CHECKPOINT), 404),
)
def list_checkpoints(
    parts: PartsDep,
    scope: Trainer,
    job_id: str,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 10,
) -> Page[CheckpointShown]:
    """The last checkpoint of an open job; no earlier one is kept, and none when the job has ended."""
    found = list(parts.store.jobs.checkpoints(scope, job_id))
    if after is not None:
        if after not in {kept.id for kept in found}:
            raise NotFound("checkpoint", after)
        found = []
    return page([checkpoint_json(kept) for kept in found], limit)


@router.get(
    "/v1/fine_tuning/jobs/{job_id}/events",
    responses=shown(listed(EVENT), 404),
)
def list_events(
    parts: PartsDep,
    scope: Trainer,
    job_id: str,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 20,
) -> Page[EventShown]:
    """What happened to a job, newest first."""
    found = parts.store.jobs.events(scope, job_id, after, limit + 1)
    return page([event_json(event) for event in found], limit)
