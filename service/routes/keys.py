"""`/v1/keys`: keys of a tenant and of its users."""

from fastapi import APIRouter

from service.deps import KeyAdmin, PartsDep, listed, page, shown
from service.schemas import KeyBody
from service.shapes import Deleted, KeyMade, KeyShown, Page

router = APIRouter(tags=["keys"])

EXAMPLE = {
    "id": "4uTnqvJ0Zq1r",
    "object": "key",
    "user": "alice",
    "scopes": ["generate"],
    "last4": "w3Rt",
    "created_at": 1767225600,
    "last_used_day": "2026-01-01",
}
MADE = {name: EXAMPLE[name] for name in ("id", "object", "user", "scopes", "created_at")}
MADE["api_key"] = "pfx_live_..."


@router.post("/v1/keys", responses=shown(MADE, 404, 429))
def create_key(parts: PartsDep, scope: KeyAdmin, body: KeyBody) -> KeyMade:
    """Make a key for the tenant or for a user; it is shown once."""
    grants = None if body.scopes is None else frozenset(body.scopes)
    key = parts.store.keys.issue(scope, body.user, grants)
    return {
        "id": key.id,
        "object": "key",
        "api_key": key.api_key,
        "user": key.user,
        "scopes": sorted(key.grants),
        "created_at": int(key.created_at),
    }


@router.get("/v1/keys", responses=shown(listed(EXAMPLE)))
def list_keys(parts: PartsDep, scope: KeyAdmin) -> Page[KeyShown]:
    """Live keys, without their secrets."""
    found: list[KeyShown] = [
        {
            "id": key.id,
            "object": "key",
            "user": key.user,
            "scopes": sorted(key.grants),
            "last4": key.last4,
            "created_at": int(key.created_at),
            "last_used_day": key.last_used_day,
        }
        for key in parts.store.keys.list(scope)
    ]
    return page(found, len(found))


@router.delete(
    "/v1/keys/{key_id}", responses=shown({"id": "4uTnqvJ0Zq1r", "object": "key", "deleted": True}, 404)
)
def revoke_key(parts: PartsDep, scope: KeyAdmin, key_id: str) -> Deleted:
    """End a key at once."""
    parts.store.keys.revoke(scope, key_id)
    return {"id": key_id, "object": "key", "deleted": True}
