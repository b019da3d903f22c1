"""`POST /v1/completions`: admitted before the first byte, then whole or streamed."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import to_thread
from fastapi import APIRouter, Depends, Header, Request
from fastapi.responses import JSONResponse, Response

from prefix_store.errors import NotFound
from prefix_store.failpoints import failpoint
from prefix_store.scope import Scope
from prefix_store.tenants import Tenant
from prefix_store.version_rows import Resolved
from service.admission import Used
from service.answers import Answer, Completion
from service.deps import Generator, PartsDep, resolve, shown
from service.errors import BLIND
from service.outbox import ClientGone, Outbox
from service.parts import Parts
from service.prompts import Plan, plan
from service.schemas import CompletionBody
from service.streaming import EventStream, Feed, hang_up_when_gone
from service.tickets import Demand, Ticket

router = APIRouter(tags=["completions"])

EXAMPLE = {
    "id": "cmpl-6dA9x0Tq2LkXw8VZ",
    "object": "text_completion",
    "created": 1767225600,
    "model": "alice:brand-voice",
    "choices": [
        {"index": 0, "text": "The Eagle serves French food.", "logprobs": None, "finish_reason": "stop"}
    ],
    "usage": {
        "prompt_tokens": 12,
        "completion_tokens": 8,
        "total_tokens": 20,
        "prompt_tokens_details": {"cached_tokens": 0},
    },
    "system_fingerprint": "fp_0a1b2c3d4e5f",
    "prefix_version": "alice:brand-voice@1",
}
_ANSWERS = shown(EXAMPLE, 404, 409, 429)
_ANSWERS[200] |= {"model": Completion}
_EVENT = {
    "type": "object",
    "description": "Each event; its data is a chunk as JSON, at last `[DONE]`.",
    "properties": {"data": {"type": "string"}},
    "required": ["data"],
}
_ANSWERS[200]["content"]["text/event-stream"] = {"schema": _EVENT}
Deadline = Annotated[
    float | None,
    Header(alias="x-deadline-seconds", gt=0, le=86400, description="Fail if not done after this."),
]

_REPLACED = 5  # times that a checkpoint may be replaced while one request looks it up


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may start: its plan, its ticket and what its answer's headers say."""

    plan: Plan
    ticket: Ticket
    headers: dict[str, str]


async def admitted(
    request: Request,
    parts: PartsDep,
    scope: Generator,
    body: CompletionBody,
    x_deadline_seconds: Deadline = None,
) -> AsyncIterator[Admitted]:
    """Hold a ticket from before the engine hears of the request until the last byte has left.

    A dependency that yields, not the response, owns the ticket: its end runs however the client went away.
    """
    seconds = min(x_deadline_seconds or parts.settings.deadline_seconds, parts.settings.deadline_seconds)
    deadline = request.state.began + seconds
    with nullcontext() if parts.traces is None else parts.traces.part("store.resolve"):
        tenant, resolved, used = await parts.lookups.ask(_look_up, parts, scope, body.model)
        payload = None
        if resolved is not None and resolved.number is None:
            resolved, payload = await _checkpoint(parts, scope, body.model, resolved)
    headers = {}
    if tenant.requests_per_minute is not None:
        headers = await to_thread.run_sync(parts.admission.rate, tenant, limiter=parts.counting)
    headers |= parts.admission.quota(tenant, used.tokens)
    if scope.user is not None:  # what is left, and from when, tells what the tenant's other users ask for
        headers = {name: value for name, value in headers.items() if "-limit-" in name}
    share, reuse = scope.tenant_id, parts.reuse.ids(scope, body.user)
    ready = await parts.planning.run(scope, plan, parts.base, body, resolved, share, reuse, deadline)
    if parts.revocation.stale:
        raise BLIND.anew()
    if resolved is not None:
        parts.residency.note(resolved)
    ticket = parts.tickets.open(scope.tenant_id, request.scope.get("client"), resolved, body.model)
    try:
        with parts.residency.at_hand(resolved, payload):
            del payload  # an answer may take long
            demand = Demand(len(ready.requests), ready.generates, ready.positions)
            parts.admission.queue(tenant, ticket, demand, deadline - time.monotonic(), used)
            parts.door.queued(request.state.visit)
            yield Admitted(ready, ticket, headers)
    finally:
        ticket.cancel()
        try:
            await parts.connections.flushed(ticket.client, parts.settings.stall_seconds)
        finally:
            parts.tickets.end(ticket)
            parts.telemetry.rows(ticket.generations)
            if parts.traces is not None:
                parts.traces.rows(ticket.generations)


def _look_up(parts: Parts, scope: Scope, model: str) -> tuple[Tenant, Resolved | None, Used]:
    """What the database knows: the tenant's limits, what the name means, the day's tokens."""
    resolved = None if model == parts.base.name else resolve(parts, scope, model)
    tenant = parts.store.tenants.get(scope.tenant_id)
    asked, tokens = parts.tickets.asked(scope.tenant_id), 0
    if tenant.tokens_per_day is not None:
        tokens = parts.meter.pending(scope.tenant_id) + parts.store.usage.tokens_today(scope.tenant_id)
    return tenant, resolved, Used(tokens, asked)


async def _checkpoint(
    parts: Parts, scope: Scope, model: str, resolved: Resolved
) -> tuple[Resolved, bytes | None]:
    """A checkpoint with its bytes; one that is replaced this moment is looked up again."""
    for _ in range(_REPLACED):
        try:
            return resolved, await parts.residency.read(resolved, parts.storing)
        except NotFound:
            resolved = await parts.lookups.ask(resolve, parts, scope, model)
    raise NotFound("model", model)


@router.post("/v1/completions", responses=_ANSWERS)
async def complete(
    request: Request,
    parts: PartsDep,
    scope: Generator,
    request_admitted: Annotated[Admitted, Depends(admitted)],
) -> Response:
    """Continue a text with the base model or a prefix."""
    ready, ticket = request_admitted.plan, request_admitted.ticket
    answer = Answer(
        ready, ready.body.model, f"cmpl-{secrets.token_hex(12)}", parts.now(), parts.base.fingerprint
    )
    request.state.answer = answer
    outbox = Outbox(ticket, parts.tickets, parts.telemetry.between_tokens)
    feed = Feed(outbox, answer, ticket, lambda: parts.revocation.stale)
    began = time.perf_counter()
    pieces = _metered(parts, scope, feed, began)
    outbox.submit(parts.engine, ready.requests)
    watch = asyncio.create_task(hang_up_when_gone(request.receive, outbox))
    try:
        if ready.body.stream:
            # The first piece is waited for, so that what fails before it still has a status.
            first: list[dict[str, Any]] = await anext(pieces, [])
            feed.check()
            return EventStream(
                feed, pieces, first, request_admitted.headers, parts.connections, parts.settings.stall_seconds
            )
        async for _ in pieces:
            pass
        feed.check()
        return JSONResponse(answer.whole(), headers=request_admitted.headers)
    except ClientGone:
        return Response(status_code=499)  # nobody reads it
    finally:
        watch.cancel()


async def _metered(
    parts: Parts, scope: Scope, feed: Feed, began: float
) -> AsyncIterator[list[dict[str, Any]]]:
    """The pieces of an answer; what it cost is counted however it ends."""
    resolved = feed.answer.plan.resolved
    owner = scope.user or (resolved.owner if resolved is not None else None)
    first = True
    try:
        async for chunks in feed.pieces():
            if first:
                failpoint("service.before_first_token")
                parts.telemetry.first_token(time.perf_counter() - began)
                first = False
            yield chunks
    finally:
        if not first:  # what failed before its first token costs nothing
            counts = feed.answer.counts()
            parts.meter.add(scope, owner, *counts)
            parts.telemetry.completion(*counts)
