"""`/v1/models`: the base model and the prefixes, as OpenAI lists models."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from prefix_store.errors import NotFound
from prefix_store.names import parse_model
from prefix_store.rows import Change
from prefix_store.scope import Scope
from prefix_store.version_rows import Resolved, Version
from service.deps import PartsDep, Reader, Writer, deletion, resolve, shown
from service.erasing import delete
from service.errors import FINAL, ApiError
from service.parts import Parts
from service.shapes import Everything, ModelShown

router = APIRouter(tags=["models"])

EXAMPLE = {"id": "alice:brand-voice", "object": "model", "created": 1767225600, "owned_by": "alice"}


def base_model(parts: Parts) -> ModelShown:
    """The base as a model."""
    return {"id": parts.base.name, "object": "model", "created": 0, "owned_by": "prefixserve"}


def prefix_model(name: str, version: Version) -> ModelShown:
    """A prefix, or one version, as a model."""
    return {
        "id": name,
        "object": "model",
        "created": int(version.created_at),
        "owned_by": version.resolved.owner.label,
        "prefix_version": version.full_name,
        "prefix_length": version.resolved.m,
    }


@router.get("/v1/models", responses=shown({"object": "list", "data": [EXAMPLE]}))
def list_models(parts: PartsDep, scope: Reader) -> Everything[ModelShown]:
    """The base model first, then every prefix that has a live version."""
    live = parts.store.registry.live(scope)
    models = [prefix_model(version.resolved.name, version) for version in live]
    return {"object": "list", "data": [base_model(parts), *models]}


@router.get("/v1/models/{name}", responses=shown(EXAMPLE, 404))
def get_model(parts: PartsDep, scope: Reader, name: str) -> ModelShown:
    """The base model, a prefix, a version or a job's checkpoint."""
    if name == parts.base.name:
        return base_model(parts)
    resolved = resolve(parts, scope, name)
    if resolved.number is None:
        return _checkpoint_model(parts, scope, name, resolved)
    for version in parts.store.registry.versions(scope, resolved.name):
        if version.resolved.version_id == resolved.version_id:
            return prefix_model(name, version)
    raise NotFound("model", name)


def _checkpoint_model(parts: Parts, scope: Scope, name: str, resolved: Resolved) -> ModelShown:
    for kept in parts.store.jobs.checkpoints(scope, resolved.job_id or ""):
        if kept.id == resolved.version_id:
            return {
                "id": name,
                "object": "model",
                "created": int(kept.created_at),
                "owned_by": resolved.owner.label,
                "prefix_version": resolved.full_name,
                "prefix_length": kept.m,
            }
    raise NotFound("model", name)  # replaced or gone since it was resolved


@router.delete(
    "/v1/models/{name}",
    responses=deletion(
        {"id": "alice:brand-voice", "object": "model", "deleted": True, "purge": "done"}, 404, 409
    ),
)
async def delete_model(parts: PartsDep, scope: Writer, name: str) -> JSONResponse:
    """A prefix with all its versions, or one version that is not live."""
    if name == parts.base.name:
        raise ApiError(409, "base_model", "the base model cannot be deleted", "model", headers=FINAL)
    change = await parts.turns.run(scope, _delete, parts, scope, name)
    return await delete(parts, scope, change.seq, "model", name)


def _delete(parts: Parts, scope: Writer, name: str) -> Change:
    parsed = parse_model(name)
    if parsed is None or parsed.job is not None:
        raise NotFound("model", name)
    if parsed.version is not None:
        return parts.store.registry.delete_version(scope, parsed.bare, parsed.version, clear=False)
    return parts.store.registry.delete_prefix(scope, name, clear=False)
