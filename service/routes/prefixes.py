"""`/v1/prefixes`: versions, and which of them is live."""

from typing import Annotated

from fastapi import APIRouter, Query

from prefix_store.version_rows import PrefixView, Version
from service.deps import After, IdempotencyKey, PartsDep, Reader, Writer, listed, page, shown
from service.schemas import PromoteBody
from service.shapes import Page, PrefixShown, VersionShown

router = APIRouter(tags=["prefixes"])

VERSION = {
    "version": 1,
    "id": "alice:brand-voice@1",
    "created_at": 1767225600,
    "prefix_length": 10,
    "text_starts_at": 10,
    "bytes": 164168,
    "job_id": "ftjob-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "live": True,
    "metrics": {"held_out_loss": 2.31, "base_loss": 4.23},
}
EXAMPLE = {
    "id": "alice:brand-voice",
    "object": "prefix",
    "owner": "alice",
    "created_at": 1767225600,
    "live_version": 1,
    "versions": [VERSION],
}


def version_json(version: Version) -> VersionShown:
    """One version as it is shown."""
    return {
        "version": version.number,
        "id": version.full_name,
        "created_at": int(version.created_at),
        "prefix_length": version.resolved.m,
        "text_starts_at": version.resolved.position_offset,
        "bytes": version.bytes,
        "job_id": version.job_id,
        "live": version.live,
        "metrics": version.metrics,
    }


def prefix_json(view: PrefixView) -> PrefixShown:
    """A prefix as it is shown."""
    return {
        "id": view.name,
        "object": "prefix",
        "owner": view.owner.label,
        "created_at": int(view.created_at),
        "live_version": view.live.number if view.live is not None else None,
        "versions": [version_json(version) for version in view.versions],
    }


@router.get("/v1/prefixes", responses=shown(listed(EXAMPLE), 404))
def list_prefixes(
    parts: PartsDep, scope: Reader, after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[PrefixShown]:
    """Every prefix that the key reaches, also those without a live version."""
    views = parts.store.registry.list(scope, after, limit + 1)
    return page([prefix_json(view) for view in views], limit)


@router.get("/v1/prefixes/{name}", responses=shown(EXAMPLE, 404))
def get_prefix(parts: PartsDep, scope: Reader, name: str) -> PrefixShown:
    """One prefix with its versions, newest first."""
    return prefix_json(parts.store.registry.get(scope, name))


@router.post("/v1/prefixes/{name}/promote", responses=shown(EXAMPLE, 404, 409))
def promote(parts: PartsDep, scope: Writer, name: str, body: PromoteBody) -> PrefixShown:
    """Make a version the one that the bare name means."""
    parts.store.registry.promote(scope, name, body.version)
    return prefix_json(parts.store.registry.get(scope, name))


@router.post("/v1/prefixes/{name}/rollback", responses=shown(EXAMPLE, 404, 409))
def roll_back(
    parts: PartsDep, scope: Writer, name: str, idempotency_key: IdempotencyKey = None
) -> PrefixShown:
    """Go back to the newest older version that was live before; sent again with its key, go back once."""
    parts.store.registry.rollback(scope, name, idempotency_key)
    return prefix_json(parts.store.registry.get(scope, name))
