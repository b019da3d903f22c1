"""`/v1/files`: datasets, uploaded as they stream in."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import JSONResponse, Response
from starlette.types import Receive, Send
from starlette.types import Scope as AsgiScope

from prefix_store.datasets import Dataset
from prefix_store.errors import NotFound
from prefix_store.scope import Owner, Scope
from service.connections import Address
from service.deps import After, IdempotencyKey, PartsDep, Uploader, deletion, listed, page, shown
from service.erasing import delete
from service.errors import ApiError
from service.openapi import refusals
from service.parts import Parts
from service.shapes import FileShown, Page
from service.tickets import Ticket
from service.uploads import Opened, receive_file

router = APIRouter(tags=["files"])

_PIECE = 64 << 10

EXAMPLE = {
    "id": "file-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "object": "file",
    "bytes": 120341,
    "created_at": 1767225600,
    "filename": "train.jsonl",
    "purpose": "fine-tune",
    "status": "processed",
    "user": "alice",
    "task": None,
    "rows": 900,
}
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["purpose", "file"],
                    "properties": {
                        "purpose": {"type": "string", "enum": ["fine-tune"]},
                        "user": {"type": "string", "description": "Owner, with a tenant's key."},
                        "task": {"type": "string", "description": "Owner, with a tenant's key."},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            }
        },
    }
}

BYTES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}},
    **refusals(404, 429),
}


def file_json(dataset: Dataset) -> FileShown:
    """A dataset as OpenAI's file."""
    owner = dataset.owner
    return {
        "id": dataset.id,
        "object": "file",
        "bytes": dataset.bytes,
        "created_at": int(dataset.created_at),
        "filename": dataset.filename,
        "purpose": dataset.purpose,
        "status": dataset.status,
        "user": owner.name if owner.kind == "user" else None,
        "task": owner.name if owner.kind == "task" else None,
        "rows": dataset.rows,
    }


@router.post("/v1/files", responses=shown(EXAMPLE, 404, 408, 409, 422, 429), openapi_extra=FORM)
async def upload(
    request: Request, parts: PartsDep, scope: Uploader, idempotency_key: IdempotencyKey = None
) -> FileShown:
    """Take a training file: JSONL with a prompt and a completion a line, of exactly one owner."""
    target = _Target(parts, scope, idempotency_key, request.scope.get("client"))
    content_type = request.headers.get("content-type", "")
    stall_seconds = parts.settings.stall_seconds
    return file_json(await receive_file(content_type, request.stream(), target, stall_seconds, parts.storing))


@dataclass(frozen=True, slots=True)
class _Target:
    """Where an upload goes; see `uploads.Target`."""

    parts: Parts
    scope: Scope
    idempotency_key: str | None
    client: Address | None

    def owner(self, fields: dict[str, str], *, last: bool) -> Owner | None:
        return _owner(self.parts, self.scope, fields, last=last)

    def open(self, owner: Owner, filename: str) -> Opened:
        key = self.idempotency_key
        writer = self.parts.store.datasets.writer(self.scope, owner, filename, idempotency_key=key)
        try:
            ticket = self.parts.tickets.open_file(owner, self.client, writer.id)
        except BaseException:
            writer.abort()
            raise
        return Opened(writer, ticket, owner)

    def close(self, opened: Opened) -> None:
        self.parts.tickets.end(opened.ticket)


def _owner(parts: Parts, scope: Scope, fields: dict[str, str], *, last: bool) -> Owner | None:
    user, task = fields.get("user"), fields.get("task")
    if user is not None and task is not None:
        raise ApiError(400, "invalid_value", "give user or task, not both", "task")
    if task is not None:
        return parts.store.owners.ensure_task(scope, task)
    if user is not None:
        if ":" in user:
            raise ApiError(400, "invalid_value", "user must be a user's id", "user")
        return parts.store.owners.get(scope, user)
    if scope.user is not None:
        return scope.user
    if last:
        text = "with a tenant's key give user or task: whose file it is"
        raise ApiError(400, "missing_required_parameter", text, "user")
    return None


@router.get("/v1/files", responses=shown(listed(EXAMPLE), 404))
def list_files(
    parts: PartsDep,
    scope: Uploader,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    order: Literal["desc"] = "desc",  # noqa: ARG001 - the only order there is; others are refused
) -> Page[FileShown]:
    """Files, newest first."""
    found = parts.store.datasets.list(scope, after, limit + 1, purpose)
    return page([file_json(dataset) for dataset in found], limit)


@router.get("/v1/files/{file_id}", responses=shown(EXAMPLE, 404))
def get_file(parts: PartsDep, scope: Uploader, file_id: str) -> FileShown:
    """One file's description."""
    return file_json(parts.store.datasets.get(scope, file_id))


@router.get("/v1/files/{file_id}/content", response_class=Response, responses=BYTES)
async def get_content(parts: PartsDep, request: Request, scope: Uploader, file_id: str) -> Response:
    """One file's bytes, as they were uploaded."""
    dataset = await parts.turns.run(scope, parts.store.datasets.get, scope, file_id)
    ticket = parts.tickets.open_file(dataset.owner, request.scope.get("client"), file_id, dataset.bytes)
    try:
        data = await to_thread.run_sync(parts.store.datasets.read, scope, file_id, limiter=parts.storing)
        _Content.check(parts, ticket)
    except BaseException:
        parts.tickets.end(ticket)
        raise
    return _Content(data, parts, ticket)


class _Content(Response):
    """Bytes of an owner, a piece at a time; cut off when the owner or the file is erased while they are sent."""

    media_type = "application/octet-stream"

    def __init__(self, data: bytes, parts: Parts, ticket: Ticket) -> None:
        super().__init__(headers={"content-length": str(len(data))})
        self._data, self._parts, self._ticket = data, parts, ticket

    @staticmethod
    def check(parts: Parts, ticket: Ticket) -> None:
        """Raise unless the file may still be sent."""
        if ticket.revoked:
            raise NotFound("file", ticket.file_id or "")
        if parts.revocation.stale:
            raise ApiError(503, "overloaded", "deletions cannot be followed now; try again", retry_after=1.0)

    async def __call__(self, _scope: AsgiScope, _receive: Receive, send: Send) -> None:
        """Send, and end the ticket when nothing is left to write."""
        connections, seconds = self._parts.connections, self._parts.settings.stall_seconds
        client = self._ticket.client
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            for start in range(0, len(self._data) or 1, _PIECE):
                self.check(self._parts, self._ticket)
                stop = start + _PIECE
                body, more = self._data[start:stop], stop < len(self._data)
                piece = {"type": "http.response.body", "body": body, "more_body": more}
                await connections.send(client, send(piece), seconds)  # type: ignore[arg-type]
            await connections.flushed(client, seconds)
        except (ApiError, NotFound, TimeoutError):
            connections.abort(client)  # a part must not look like the whole
        finally:
            self._parts.tickets.end(self._ticket)


GONE = {"id": "file-4uTnqvJ0Zq1rVbY7eXo2Ks", "object": "file", "deleted": True, "purge": "done"}


@router.delete("/v1/files/{file_id}", responses=deletion(GONE, 404))
async def delete_file(
    parts: PartsDep, scope: Uploader, file_id: str, *, versions: bool = False
) -> JSONResponse:
    """Erase a file's bytes; with `versions=true` also the versions that learned from it."""
    told = await parts.turns.run(
        scope, lambda: parts.store.datasets.delete(scope, file_id, versions=versions, clear=False)
    )
    return await delete(parts, scope, told.seq, "file", file_id)
