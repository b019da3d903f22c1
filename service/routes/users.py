"""`/v1/users`: people of a tenant, each the owner of what is theirs; and their erasure."""

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse

from prefix_store.errors import NotFound
from prefix_store.owners import OwnerView
from prefix_store.scope import Admin, Scope
from service.deps import After, Eraser, KeyAdmin, PartsDep, deletion, listed, page, shown
from service.erasing import erase, erasure_json
from service.errors import ApiError
from service.schemas import UserBody
from service.shapes import Erasing, OwnerShown, Page

router = APIRouter(tags=["users"])

EXAMPLE = {"id": "alice", "object": "user", "created_at": 1767225600}
ERASURE = {
    "id": "era-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "object": "erasure",
    "kind": "user",
    "state": "done",
    "deleted": True,
    "created_at": 1767225600,
    "done_at": 1767225601,
}


def owner_json(view: OwnerView) -> OwnerShown:
    """A user or task as it is shown."""
    return {"id": view.owner.name, "object": view.owner.kind, "created_at": int(view.created_at)}


@router.post("/v1/users", responses=shown(EXAMPLE, 409, 429))
def create_user(parts: PartsDep, scope: KeyAdmin, body: UserBody) -> OwnerShown:
    """Make a user."""
    parts.store.owners.create_user(scope, body.id)
    return owner_json(parts.store.owners.view(scope, body.id))


@router.get("/v1/users", responses=shown(listed(EXAMPLE), 404))
def list_users(
    parts: PartsDep, scope: KeyAdmin, after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[OwnerShown]:
    """Users by name."""
    found = parts.store.owners.list_users(scope, after, limit + 1)
    return page([owner_json(view) for view in found], limit)


@router.get("/v1/users/{user_id}", responses=shown(EXAMPLE, 404))
def get_user(parts: PartsDep, scope: KeyAdmin, user_id: str) -> OwnerShown:
    """One user."""
    return owner_json(parts.store.owners.view(scope, _user(user_id)))


@router.delete(
    "/v1/users/{user_id}",
    responses=deletion({"id": "alice", "object": "user", "deleted": True, "purge": "done"}, 404),
)
async def delete_user(parts: PartsDep, scope: Eraser, user_id: str) -> JSONResponse:
    """Erase a user: keys, files, jobs, prefixes, and task versions that learned from the files."""
    begun = await parts.turns.run(scope, parts.store.erasure.begin, scope, _user(user_id))
    return await erase(parts, begun, user_id)


@router.get("/v1/tasks", responses=shown(listed({**EXAMPLE, "object": "task"}), 404))
def list_tasks(
    parts: PartsDep, scope: KeyAdmin, after: After = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> Page[OwnerShown]:
    """Tasks by name."""
    found = parts.store.owners.list_tasks(scope, after, limit + 1)
    return page([owner_json(view) for view in found], limit)


@router.delete(
    "/v1/tasks/{task_id}",
    responses=deletion({"id": "e2e", "object": "task", "deleted": True, "purge": "done"}, 404),
)
async def delete_task(parts: PartsDep, scope: Eraser, task_id: str) -> JSONResponse:
    """Erase a task with its files, jobs and prefix."""
    begun = await parts.turns.run(scope, parts.store.erasure.begin, scope, f"task:{task_id}")
    return await erase(parts, begun, task_id)


@router.get("/v1/erasures/{erasure_id}", responses=shown(ERASURE, 404))
def get_erasure(request: Request, parts: PartsDep, erasure_id: str) -> Erasing:
    """How far an erasure is; for the tenant's keys that may erase, and for the operator."""
    caller = request.state.caller
    if not isinstance(caller, Scope | Admin) or (
        isinstance(caller, Scope) and "users:erase" not in caller.grants
    ):
        text = "this key lacks the scope users:erase; ask for one that has it"
        raise ApiError(403, "insufficient_permissions", text)
    return erasure_json(parts, parts.store.erasure.get(caller, erasure_id))


def _user(user_id: str) -> str:
    """A label that can only be a user's."""
    if ":" in user_id:
        raise NotFound("owner", user_id)
    return user_id
