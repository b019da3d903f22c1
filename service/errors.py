"""Every error as OpenAI's envelope: one table from what the store, the engine and the web raise to HTTP.

Messages name fields and ids that the caller gave; what is not foreseen answers 500 without its text.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from math import ceil
from typing import Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from prefix_engine import Failed, QueueFullError, RequestError
from prefix_store import errors as store
from service.shapes import ErrorAnswer, ErrorKind
from service.tickets import MOST_TRANSFERS, TransfersFull

# Bounds that turn a request away for a time, as metrics call them; docs/api.md says what each is.
Refusal = Literal[
    "rate", "quota", "tenant_requests", "tenant_queue", "tenant_share", "tenant_bytes", "queue", "bytes", "deadline",
    "connections", "draining", "transfers", "files",
]  # fmt: skip
_LEDGER = "deletions cannot be written down: the ledger is not of this installation's secrets; the operator must mend it"
FINAL = {"x-should-retry": "false"}
_FULL_S = 30.0  # somebody has to make room
_QUOTA_S = 60.0  # waiting alone frees nothing; a job may have ended by then


@dataclass(slots=True)
class ApiError(Exception):
    """An answer that is no success; `retry_after` in seconds, `refused` why a request was turned away for now."""

    status: int
    code: str
    message: str
    param: str | None = None
    retry_after: float | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    refused: Refusal | None = None

    def anew(self) -> "ApiError":
        """The same, to be raised: an exception keeps the frames it passed, and one raised again and again keeps them all."""
        return replace(self)

    def body(self) -> ErrorAnswer:
        """OpenAI's envelope."""
        other: ErrorKind = "server_error" if self.status >= 500 else "invalid_request_error"
        kind = _TYPES.get(self.status, other)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def all_headers(self) -> dict[str, str]:
        """Headers with the time to wait, whole seconds for everybody and milliseconds for OpenAI's clients."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["retry-after"] = str(max(1, ceil(self.retry_after)))
            headers["retry-after-ms"] = str(max(1, ceil(self.retry_after * 1000)))
        return headers


_TYPES: dict[int, ErrorKind] = {403: "permission_error", 429: "rate_limit_error"}

NO_KEY = ApiError(
    401,
    "invalid_api_key",
    "no valid API key; send `Authorization: Bearer <key>` with a key that is not revoked",
    headers={"www-authenticate": "Bearer"},
)
DRAINING = ApiError(
    503,
    "draining",
    "this process is stopping; send the request again",
    retry_after=1.0,
    headers={"connection": "close"},
    refused="draining",
)

BLIND = ApiError(503, "overloaded", "the database cannot be followed now; try again", retry_after=1.0)

CROWDED = ApiError(
    503,
    "overloaded",
    "as many connections are open as may be (connections); send it again later",
    retry_after=1.0,
    headers={"connection": "close"},
    refused="connections",
)

# The engine's failures, see `prefix_engine.request.Failed`: status, code for the client, worth another try.
_FAILURES: dict[str, tuple[int, str, float | None]] = {
    "revoked": (404, "model_not_found", None),
    "deadline": (503, "deadline_exceeded", 1.0),
    "context": (400, "context_length_exceeded", None),
    "base_mismatch": (409, "base_mismatch", None),
    "draining": (503, "draining", 1.0),
    "engine_stopped": (503, "draining", 1.0),
    "unavailable": (503, "overloaded", 1.0),
    "stale": (503, "overloaded", 1.0),
    "cancelled": (503, "cancelled", 1.0),
    "corrupt": (500, "corrupt", None),
    "format": (500, "corrupt", None),
    "shape": (500, "corrupt", None),
    "non_finite": (500, "non_finite", None),
}


def of_failure(failed: Failed, model: str) -> ApiError:
    """The answer to a request whose row failed."""
    status, code, wait = _FAILURES.get(failed.code, (500, failed.code, None))
    if failed.code == "revoked":
        return ApiError(404, code, f"no model named {model!r}", "model")
    if code == "corrupt":
        text = f"the tensor file of {model!r} is damaged; train it again or promote another version"
        return ApiError(status, code, text, "model", headers=FINAL)
    param = {"context": "max_tokens", "base_mismatch": "model"}.get(failed.code)
    return ApiError(status, code, failed.message, param, wait, {} if wait else FINAL)


def api_error(error: Exception) -> ApiError:
    """Whatever was raised, as an answer."""
    for kind, made in _TABLE:
        if isinstance(error, kind):
            answer: ApiError = made(error)
            return answer
    return ApiError(500, "internal_error", "the service failed on this request; it was logged")


def _not_found(error: store.NotFound) -> ApiError:
    code = {"model": "model_not_found"}.get(error.what, "not_found")
    return ApiError(404, code, str(error), error.what if error.what == "model" else None)


def _invalid(error: store.Invalid) -> ApiError:
    return ApiError(400, "invalid_value", error.message, error.param)


def _conflict(error: store.Conflict) -> ApiError:
    status = {"tenant_key_required": 403, "idempotency_mismatch": 422}.get(error.code, 409)
    return ApiError(status, error.code, error.message, error.param, headers=FINAL)


def _validation(error: RequestValidationError) -> ApiError:
    first: Any = error.errors()[0]
    where = [str(part) for part in first["loc"][1:] if not _of_union(str(part))]
    param = ".".join(where) or None
    if first["type"] == "missing":
        return ApiError(400, "missing_required_parameter", f"{param or 'a body'} is missing; give it", param)
    if first["type"] == "json_invalid":
        return ApiError(400, "invalid_json", "the body is no valid JSON; mend it and send it again")
    what = first["msg"].removeprefix("Value error, ")
    return ApiError(400, "invalid_value", f"{param or 'body'}: {what}", param)


def _of_union(part: str) -> bool:
    """Whether a part of a location names a member of a union, not a field."""
    return part in {"str", "int", "float", "bool", "constrained-str"} or "[" in part or "(" in part


def _http(error: HTTPException) -> ApiError:
    # Raised where a body was read, which FastAPI calls a fault of its JSON.
    if isinstance(error.__cause__, ApiError):
        return error.__cause__
    code = {404: "not_found", 405: "method_not_allowed", 408: "timeout", 413: "too_large"}.get(
        error.status_code
    )
    text = {404: "no such route", 405: "this route has no such method"}.get(error.status_code)
    if error.status_code == 400:
        code, text = "invalid_json", "the body is no valid JSON in UTF-8; mend it and send it again"
    headers = dict(error.headers or {})
    return ApiError(error.status_code, code or "invalid_request", text or str(error.detail), headers=headers)


def _transfers_full(error: TransfersFull) -> ApiError:
    if error.full == "all":
        text = "files that are being sent fill the memory that is kept for them (sent_bytes); send it again later"
        return ApiError(503, "overloaded", text, retry_after=1.0, refused="files")
    text = f"{MOST_TRANSFERS} files are under way, or this tenant's part of sent_bytes; wait for one"
    return ApiError(429, "too_many_transfers", text, retry_after=1.0, refused="transfers")


_TABLE: list[tuple[type[Exception], Any]] = [
    (ApiError, lambda error: error),
    (
        store.NoRoom,
        lambda e: ApiError(507, "storage_full", f"{e}; the operator must make room", retry_after=_FULL_S),
    ),
    (store.ForeignSecrets, lambda _: ApiError(503, "overloaded", _LEDGER, retry_after=_FULL_S)),
    (
        store.Unavailable,
        lambda e: ApiError(503, "overloaded", f"{e}; try again", retry_after=1.0),
    ),
    (store.NoLiveVersion, lambda e: ApiError(404, "no_live_version", str(e), "model")),
    (store.NoCheckpoint, lambda e: ApiError(404, "no_checkpoint", str(e), "model")),
    (store.NotFound, _not_found),
    (store.TooLarge, lambda e: ApiError(413, "too_large", e.message, e.param)),
    (store.Invalid, _invalid),
    (store.Conflict, _conflict),
    (store.Quota, lambda e: ApiError(429, "insufficient_quota", e.message, e.param, _QUOTA_S, FINAL)),
    (
        store.Corrupt,
        lambda _: ApiError(500, "corrupt", "the stored bytes are damaged; send them anew", headers=FINAL),
    ),
    (TransfersFull, _transfers_full),
    (RequestError, lambda e: ApiError(400, "invalid_value", str(e), e.param)),
    (
        QueueFullError,
        lambda _: ApiError(
            503, "overloaded", "too many requests wait; send it again", retry_after=1.0, refused="queue"
        ),
    ),
    (RequestValidationError, _validation),
    (ClientDisconnect, lambda _: ApiError(499, "client_closed", "nobody reads this")),
    (HTTPException, _http),
]


class _Escaped(JSONResponse):
    """JSON in ASCII: a message may quote what cannot be encoded."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def respond(error: ApiError) -> JSONResponse:
    """The error as a response."""
    return _Escaped(error.body(), error.status, error.all_headers())


def raw(error: ApiError) -> bytes:
    """The error as a whole HTTP/1.1 response, for a connection that no request is read from."""
    made = respond(error)
    head = b"".join(name + b": " + value + b"\r\n" for name, value in made.raw_headers)
    return (
        f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\n".encode()
        + head
        + b"\r\n"
        + bytes(made.body)
    )


def install(app: FastAPI) -> None:
    """Have the app answer all its errors in the envelope."""

    async def handle(request: Request, error: Exception) -> JSONResponse:
        answer = api_error(error)
        request.state.refused = answer.refused
        return respond(answer)

    for kind, _ in _TABLE:
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(Exception, handle)
