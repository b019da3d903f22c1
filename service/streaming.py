"""Completions on their way to the client: gathered into one JSON answer, or sent as server-sent events.

What may be sent is asked for each piece, immediately before it is handed to the socket: nothing of a
revoked ticket leaves after its revocation was acknowledged, and nothing at all once this process has lost
sight of deletions.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from fastapi.responses import Response
from starlette.types import Receive, Scope, Send

from prefix_engine import Failed
from service.answers import Answer, failure
from service.connections import Connections
from service.errors import ApiError, of_failure
from service.outbox import ClientGone, Outbox
from service.tickets import Ticket

STALE = Failed("stale", "this process has lost sight of the database; send the request again")
REVOKED = Failed("revoked", "the prefix was deleted")


class Feed:
    """One answer being made: the outbox, the answer so far, and whether it may still be sent.

    Args:
        outbox: where its events come from.
        answer: what they make.
        ticket: which may be revoked.
        stale: whether this process must send nothing.
    """

    def __init__(self, outbox: Outbox, answer: Answer, ticket: Ticket, stale: Callable[[], bool]) -> None:
        self.outbox, self.answer, self._ticket, self._stale = outbox, answer, ticket, stale
        self.client = ticket.client
        self._model = answer.plan.body.model

    def check(self) -> None:
        """Raise why nothing more may be sent, if anything forbids it."""
        failed = REVOKED if self._ticket.revoked else STALE if self._stale() else None
        if failed is not None:
            raise of_failure(failed, self._model)

    async def pieces(self) -> AsyncIterator[list[dict[str, Any]]]:
        """Chunks as they come.

        Raises:
            ApiError: a row failed; the others are cancelled.
            ClientGone: nobody waits.
        """
        while events := await self.outbox.take():
            failed = failure(events)
            if failed is not None:
                self._ticket.cancel()
                raise of_failure(failed, self._model)
            yield self.answer.pieces(events)  # type: ignore[arg-type]


class EventStream(Response):
    """Server-sent events of one answer.

    Args:
        feed: the answer being made.
        first: its first chunks, which were waited for so that a failure could still be a status.
        headers: of the response.
        connections: where the client's socket is.
        stall_seconds: after which a client that takes nothing is given up.
    """

    def __init__(
        self,
        feed: Feed,
        pieces: AsyncIterator[list[dict[str, Any]]],
        first: list[dict[str, Any]],
        headers: dict[str, str],
        connections: Connections,
        stall_seconds: float,
    ) -> None:
        super().__init__(headers={**headers, "x-accel-buffering": "no"}, media_type="text/event-stream")
        del self.headers["content-length"]
        self._feed, self._pieces, self._first = feed, pieces, first
        self._connections, self._stall = connections, stall_seconds

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        """Send the answer; ends early when the client goes away or takes nothing."""
        watch = asyncio.create_task(hang_up_when_gone(receive, self._feed.outbox))
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await self._send_all(send)
        except ClientGone:
            pass
        finally:
            watch.cancel()

    async def _send_all(self, send: Send) -> None:
        try:
            await self._put(send, self._first)
            async for chunks in self._pieces:
                await self._put(send, chunks)
            last = self._feed.answer.last_piece()
            await self._put(send, [] if last is None else [last], done=True)
        except ApiError as error:
            await self._write(send, _event(error.body()), more=False)
        except TimeoutError:  # who has waited so long takes nothing: its bytes would only lie there
            self._connections.abort(self._feed.client)
            raise ClientGone from None

    async def _put(self, send: Send, chunks: list[dict[str, Any]], *, done: bool = False) -> None:
        if not chunks and not done:
            return
        data = b"".join(map(_event, chunks)) + (b"data: [DONE]\n\n" if done else b"")
        self._feed.check()
        await self._write(send, data, more=not done)

    async def _write(self, send: Send, data: bytes, *, more: bool) -> None:
        sending = send({"type": "http.response.body", "body": data, "more_body": more})
        await self._connections.send(self._feed.client, sending, self._stall)  # type: ignore[arg-type]


async def hang_up_when_gone(receive: Receive, outbox: Outbox) -> None:
    """Tell the outbox when the client closes its connection."""
    while (await receive())["type"] != "http.disconnect":
        pass
    outbox.hang_up()


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
