"""What routes ask for: the parts, the caller with the right to do it, a request admitted."""

from collections.abc import AsyncIterator, Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Annotated, Any, Literal, Protocol, TypeVar

from fastapi import Depends, Header, Query, Request

from prefix_store.names import parse_model
from prefix_store.scope import Admin, Scope
from prefix_store.version_rows import Resolved
from service.errors import ApiError
from service.openapi import refusals
from service.parts import Parts
from service.shapes import Deleted, Page

_JOBS = "jobs:write"


async def parts_of(request: Request) -> Parts:
    """The parts of this process; on no thread, which readiness must not need."""
    parts: Parts = request.app.state.parts
    return parts


async def admin_of(request: Request) -> Admin:
    """The operator; 403 for tenants' keys. On no thread, like all that waits for nothing."""
    caller = request.state.caller
    if not isinstance(caller, Admin):
        raise ApiError(403, "admin_key_required", "this needs the admin key")
    return caller


def may(*grants: str) -> Callable[[Request], Awaitable[Scope]]:
    """A dependency: the caller's scope if its key has one of these grants (none named: any key of a tenant)."""

    async def scope_of(request: Request) -> Scope:
        caller = request.state.caller
        if not isinstance(caller, Scope):
            raise ApiError(
                403, "tenant_key_required", "the admin key reaches no tenant's data; use a tenant's key"
            )
        if grants and not caller.grants & set(grants):
            text = f"this key lacks the scope {' or '.join(grants)}; ask for one that has it"
            raise ApiError(403, "insufficient_permissions", text)
        return caller

    return scope_of


PartsDep = Annotated[Parts, Depends(parts_of)]


async def in_turn(request: Request, parts: PartsDep) -> AsyncIterator[None]:
    """Have a route that runs on a thread run in a turn of its tenant; its body has come by now.

    A route of the event loop takes a turn itself for what it does on a thread (`Turns.run`).
    """
    caller = request.state.caller
    if iscoroutinefunction(request.scope["endpoint"]) or not isinstance(caller, Scope):
        yield
        return
    async with parts.turns.turn(caller.tenant_id):
        yield


IN_TURN = Depends(in_turn, scope="function")  # over before the answer is sent
AdminDep = Annotated[Admin, Depends(admin_of)]
AnyScope = Annotated[Scope, Depends(may())]
Generator = Annotated[Scope, Depends(may("generate"))]
Reader = Annotated[Scope, Depends(may("prefixes:read", "prefixes:write", "generate"))]
Writer = Annotated[Scope, Depends(may("prefixes:write"))]
Uploader = Annotated[Scope, Depends(may("datasets:write"))]
Trainer = Annotated[Scope, Depends(may(_JOBS))]
KeyAdmin = Annotated[Scope, Depends(may("keys:admin"))]
Eraser = Annotated[Scope, Depends(may("users:erase"))]


def resolve(parts: Parts, scope: Scope, name: str) -> Resolved:
    """What a name means now; a job's name is for keys that may see jobs.

    Raises:
        ApiError: 403, the key may not.
        NotFound: nothing by that name for this scope.
    """
    parsed = parse_model(name)
    if parsed is not None and parsed.job is not None and _JOBS not in scope.grants:
        text = f"a job's checkpoint is for keys with the scope {_JOBS}; this one lacks it"
        raise ApiError(403, "insufficient_permissions", text, "model")
    return parts.store.registry.resolve(scope, name)


IdempotencyKey = Annotated[str | None, Header(alias="idempotency-key", min_length=1, max_length=255)]
After = Annotated[str | None, Query(max_length=200, description="The id that the page begins behind.")]


def shown(example: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """An example answer for the OpenAPI document, and the errors that this route has beside those of all."""
    answer = {"description": "OK", "content": {"application/json": {"example": example}}}
    return {200: answer, **refusals(*statuses)}


def deletion(example: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    """The same for what deletes: 202 while a process may still serve it."""
    later = {"model": Deleted, "description": "It takes longer; a process may serve it yet."}
    done = shown(example, *statuses)
    return {**done, 200: {**done[200], "model": Deleted}, 202: later}


def listed(example: Any) -> dict[str, Any]:
    """An example page."""
    known = example.get("id")
    return {"object": "list", "data": [example], "first_id": known, "last_id": known, "has_more": False}


class _Listed(Protocol):
    """What has an id; every shape of a list's parts is such a dict."""

    def __getitem__(self, name: Literal["id"], /) -> Any: ...


Item = TypeVar("Item", bound=_Listed)


def page(items: list[Item], limit: int) -> Page[Item]:
    """A cursor page of at most `limit` of the items that were found (one more tells that there are more)."""
    data = items[:limit]
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": len(items) > limit,
    }
