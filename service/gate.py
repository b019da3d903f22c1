"""What every request passes before any byte of its body is read: an id, a key, a limit.

Pure ASGI, so that nothing is buffered. Routes read the caller from the request's state; the health routes
need none.
"""

import asyncio
import re
import secrets
import time
from contextlib import nullcontext, suppress
from typing import TYPE_CHECKING, Final

import structlog
from anyio import to_thread
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from service.answers import Answer
from service.errors import DRAINING, NO_KEY, ApiError, api_error, respond
from service.telemetry import known

if TYPE_CHECKING:
    from service.parts import Parts

log = structlog.get_logger("service")

OPEN: Final = frozenset({"/livez", "/readyz", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
HEALTH: Final = frozenset({"/livez", "/readyz"})
UPLOADS: Final = "/v1/files"
_FORM_BYTES = 1 << 20  # what a form may weigh beside its file
_LINGER_S = 5.0  # how long a client may go on to write after its answer
_BEARER = "bearer "
_PLAIN = re.compile(r"[A-Za-z0-9._-]{1,64}")
_KEY = "pfx_"  # how a key begins
_PIECE = 12  # characters of a key that tell something of it


class Gate:
    """The outermost layer of the app."""

    def __init__(self, app: ASGIApp, parts: "Parts") -> None:
        self._app = app
        self._parts = parts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id, traces = _request_id(scope), self._parts.traces
        scope.setdefault("state", {})["request_id"] = request_id
        if scope["path"] in HEALTH:
            traces = None
        with (
            bound_contextvars(request_id=request_id),
            nullcontext() if traces is None else traces.request(scope, request_id),
        ):
            await self._serve(scope, receive, send, request_id)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
        began, status, whole, early = time.perf_counter(), 0, False, False
        body = _Body(receive, scope, self._limit(scope))

        async def answer(message: Message) -> None:
            nonlocal status, whole, early
            if message["type"] == "http.response.start":
                status = scope["state"]["status"] = message["status"]
                spent = int((time.perf_counter() - began) * 1000)
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"openai-processing-ms", str(spent).encode()),
                    (b"openai-version", b"2020-10-01"),
                    (b"x-content-type-options", b"nosniff"),
                    (b"cache-control", b"no-store"),
                ]
                early = not body.read
                if early:  # or the server would take the rest of it only to throw it away
                    message["headers"].append((b"connection", b"close"))
            whole = message["type"] == "http.response.body" and not message.get("more_body", False)
            await send({**message, "more_body": True} if whole and early else message)

        try:
            await self._pass(scope, body, answer)
        except Exception as error:
            log.exception("request.failed", error=type(error).__name__)
            if not status:
                await respond(api_error(error))(scope, receive, answer)
            elif not whole:
                raise  # the server cuts the connection, so that nobody takes a part for the whole
        finally:
            self._note(scope, status, time.perf_counter() - began)
        if whole and early:
            await body.let_go()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, scope: Scope, receive: "_Body", send: Send) -> None:
        try:
            self._look_at_head(scope, receive.limit)
            await self._authenticate(scope)
        except ApiError as refusal:
            await respond(refusal)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _limit(self, scope: Scope) -> int:
        """Most bytes of this body."""
        if scope["path"] == UPLOADS:
            return self._parts.store.settings.max_upload_bytes + _FORM_BYTES
        return self._parts.settings.max_body_bytes

    def _look_at_head(self, scope: Scope, limit: int) -> None:
        """Refuse while draining, and a body that says itself that it is too large."""
        path = scope["path"]
        if self._parts.draining and path not in HEALTH:
            raise DRAINING
        if "\x00" in path or b"%00" in scope["query_string"]:
            raise ApiError(400, "invalid_value", "the address holds a NUL; remove it")
        length = _header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise _too_large(limit, path)

    async def _authenticate(self, scope: Scope) -> None:
        if scope["path"] in OPEN:
            return
        given = _header(scope, b"authorization")
        token = given[len(_BEARER) :].strip() if given[: len(_BEARER)].lower() == _BEARER else ""
        caller = await to_thread.run_sync(self._parts.authenticate, token) if token else None
        if caller is None:
            raise NO_KEY
        scope["state"]["caller"] = caller

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        self._parts.telemetry.request(scope["method"], route, status, seconds)
        if route in HEALTH:
            return
        told: dict[str, int] = {}
        answer: Answer | None = scope["state"].get("answer")
        if answer is not None:
            told["prompt_tokens"], told["completion_tokens"] = answer.counts()
        log.info(
            "request.done",
            method=known(scope["method"]),
            route=route,
            status=status,
            seconds=round(seconds, 4),
            **told,
        )


def _request_id(scope: Scope) -> str:
    """The client's own id if it is a plain word, else one of ours; a key is no id, nor is a piece of one."""
    given = _header(scope, b"x-request-id")
    piece = len(given) >= _PIECE and given in _header(scope, b"authorization")
    if _PLAIN.fullmatch(given) and _KEY not in given and not piece:
        return given
    return f"req_{secrets.token_hex(12)}"


def _header(scope: Scope, name: bytes) -> str:
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def _too_large(limit: int, path: str) -> ApiError:
    what = "split the file" if path == UPLOADS else "send less at once"
    return ApiError(413, "too_large", f"the body is larger than {limit} bytes; {what}")


class _Body:
    """A `receive` that refuses a body as soon as it has brought more than `limit` bytes."""

    def __init__(self, receive: Receive, scope: Scope, limit: int) -> None:
        self._receive = receive
        self._seen = 0
        self.limit = limit
        self.read = _header(scope, b"content-length") in {"", "0"} and not _header(
            scope, b"transfer-encoding"
        )

    async def __call__(self) -> Message:
        message = await self._receive()
        self._seen += len(message.get("body", b""))
        if self._seen > self.limit:
            raise HTTPException(413, f"the body is larger than {self.limit} bytes")
        self.read = self.read or not message.get("more_body", False)
        return message

    async def let_go(self) -> None:
        """Throw away what the client still sends, for a short while and up to twice the limit (RFC 9112, 9.6).

        Closing at once resets the connection, and whoever is still writing, a proxy above all, then loses the
        answer that is already there.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                while not self.read and self._seen <= 2 * self.limit:
                    message = await self._receive()
                    self._seen += len(message.get("body", b""))
                    self.read = not message.get("more_body", False)
