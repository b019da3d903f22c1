"""What every request passes before any byte of its body is read: an id, a key, a limit.

Pure ASGI, so that nothing is buffered. Routes read the caller from the request's state; the health routes
need none.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Final

import structlog
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from prefix_store.scope import Admin
from prefix_store.scope import Scope as Caller
from service.answers import Answer
from service.errors import BLIND, DRAINING, NO_KEY, ApiError, api_error, respond
from service.json_weight import JsonWeight
from service.telemetry import known

if TYPE_CHECKING:
    from service.parts import Parts

log = structlog.get_logger("service")

OPEN: Final = frozenset({"/livez", "/readyz", "/docs", "/openapi.json", "/docs/oauth2-redirect"})
HEALTH: Final = frozenset({"/livez", "/readyz"})
UPLOADS: Final = "/v1/files"
_FORM_BYTES = 1 << 20  # what a form may weigh beside its file
_UPLOAD_BYTES = 2 << 20  # what an upload holds of its file at once
_SMALL = 64 << 10  # a body that is thrown away sooner than a new connection is made
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
        scope["state"]["began"] = time.monotonic()
        upload = scope["path"] == UPLOADS
        stall = None if upload else self._parts.settings.stall_seconds
        weight = None if upload else JsonWeight(self._parts.most_values)
        body = _Body(receive, scope, self._limit(scope), stall, weight)

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
                early = not body.read and not body.small
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
        door, state, path = self._parts.door, scope["state"], scope["path"]
        token = _token(scope)
        length = min(receive.length, _UPLOAD_BYTES) if path == UPLOADS else receive.length
        visit = None
        try:
            self._look_at_head(scope, receive)
            if path not in OPEN:
                if token:
                    door.knock(token, path, length)
                caller = state["caller"] = await self._authenticate(token)
                if isinstance(caller, Caller):
                    visit = state["visit"] = door.enter(caller.tenant_id, token, path, length)
                    receive.weighed = partial(door.grow, visit)
        except ApiError as refusal:
            state["refused"] = refusal.refused
            await respond(refusal)(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            if visit is not None:
                door.leave(visit)

    def _limit(self, scope: Scope) -> int:
        """Most bytes of this body."""
        if scope["path"] == UPLOADS:
            return self._parts.store.settings.max_upload_bytes + _FORM_BYTES
        return self._parts.settings.max_body_bytes

    def _look_at_head(self, scope: Scope, body: "_Body") -> None:
        """Refuse while draining, while the database is out of sight, and a body that says itself that it is too large.

        Who cannot follow deletions may send nothing, so there is nothing to look up; and whose key it is would be asked
        of the database that does not answer.
        """
        path = scope["path"]
        if self._parts.draining and path not in HEALTH:
            raise DRAINING.anew()
        if path not in OPEN and self._parts.revocation.stale:
            raise BLIND.anew()
        if "\x00" in path or b"%00" in scope["query_string"]:
            raise ApiError(400, "invalid_value", "the address holds a NUL; remove it")
        if body.length > body.limit:
            raise _too_large(body.limit, path)

    async def _authenticate(self, token: str) -> Caller | Admin:
        caller = await self._parts.lookups.ask(self._parts.authenticate, token) if token else None
        if caller is None:
            raise NO_KEY.anew()
        return caller

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "(none)")
        self._parts.telemetry.request(scope["method"], route, status, seconds)
        refused = scope["state"].get("refused")
        if refused is not None:
            self._parts.telemetry.refusal(refused, seconds)
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


def _token(scope: Scope) -> str:
    """The key that is sent, or nothing."""
    given = _header(scope, b"authorization")
    return given[len(_BEARER) :].strip() if given[: len(_BEARER)].lower() == _BEARER else ""


def _too_large(limit: int, path: str) -> ApiError:
    what = "split the file" if path == UPLOADS else "send less at once"
    return ApiError(413, "too_large", f"the body is larger than {limit} bytes; {what}")


class _Body:
    """A `receive` that refuses a body as soon as it has brought more than `limit` bytes, or nothing for `stall` seconds.

    Attributes:
        length: bytes that it says it has; if it says nothing, as many as it may have.
        small: its end comes soon, and need not be waited for before the connection's next request.
        read: it has ended.
        weighed: hears what the whole of it will take when it is read, before it is; may refuse it.
    """

    weighed: Callable[[int], None] | None = None

    def __init__(
        self, receive: Receive, scope: Scope, limit: int, stall: float | None, weight: JsonWeight | None
    ) -> None:
        self._receive, self._stall, self._weight = receive, stall, weight
        self._seen = 0
        self.limit = limit
        said, unsaid = _header(scope, b"content-length"), bool(_header(scope, b"transfer-encoding"))
        self.read = said in {"", "0"} and not unsaid
        self.length = limit if unsaid else int(said) if said.isdigit() else 0
        self.small = self.length <= _SMALL and not unsaid and not _header(scope, b"expect")

    async def __call__(self) -> Message:
        if self.read or self._stall is None:
            message = await self._receive()
        else:
            try:
                async with asyncio.timeout(self._stall):
                    message = await self._receive()
            except TimeoutError:
                text = f"nothing of the body came for {self._stall:.0f} s; send it again"
                raise HTTPException(408, text) from None
        if self.read:  # nothing of it comes any more
            return message
        piece = message.get("body", b"")
        self._seen += len(piece)
        if self._seen > self.limit:
            raise HTTPException(413, f"the body is larger than {self.limit} bytes")
        if self._weight is not None:
            self._weight.add(piece)
        self.read = not message.get("more_body", False)
        if self.read and self._weight is not None and self.weighed is not None:
            self.weighed(self._weight.expected)
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
