"""Bodies that are still coming when the drain is over: refused with a time to come again, before the server ends them.

Pure ASGI and the outermost layer, so that whoever reads a body, of whatever kind, is told while it waits for more.
"""

import asyncio
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DRAINING

_LINGER_S: Final = 2.0  # for who is still writing to find the answer
# For what has arrived to be read: a time that is over comes before it in the loop's turn.
_ARRIVED_S: Final = 0.05
_GONE: Final[Message] = {"type": "http.disconnect"}


class Receiving:
    """The waits for bodies of one process; belongs to the event loop."""

    def __init__(self) -> None:
        self._waits: dict[asyncio.Timeout, Callable[[], bool]] = {}  # and whether each has its answer
        self._cut_at: float | None = None

    def cut(self) -> None:
        """From now on nothing more of a body is waited for: DRAINING is raised where it is."""
        self._cut_at = asyncio.get_running_loop().time()
        for wait, answered in self._waits.items():
            wait.reschedule(self._until(answered=answered()))

    def around(self, app: ASGIApp) -> ASGIApp:
        """The app, whose requests' bodies can be cut."""

        async def watched(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            whole = answered = False

            async def take() -> Message:
                nonlocal whole
                if whole:  # who asks now waits for the client to go away
                    return await receive()
                message = await self._take(receive, lambda: answered)
                whole = not message.get("more_body", False)
                return message

            async def answer(message: Message) -> None:
                nonlocal answered
                answered = True
                await send(message)

            await app(scope, take, answer)

        return watched

    async def _take(self, receive: Receive, answered: Callable[[], bool]) -> Message:
        try:
            async with asyncio.timeout_at(self._until(answered=answered())) as wait:
                self._waits[wait] = answered
                try:
                    return await receive()
                finally:
                    del self._waits[wait]
        except TimeoutError:
            if not answered():
                raise DRAINING.anew() from None
            return _GONE  # the answer is there, and what still comes is thrown away

    def _until(self, *, answered: bool) -> float | None:
        """When to wait no longer, on the loop's clock."""
        if self._cut_at is None:
            return None
        last = self._cut_at + _LINGER_S
        return last if answered else min(last, asyncio.get_running_loop().time() + _ARRIVED_S)
