"""Open sockets by the address of their client, so that what must not be sent any more is not.

A response that has ended for the app may still lie in its transport because the client reads slowly.
Revocation waits for such bytes, and throws away those that nobody takes.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Address = tuple[str, int]
_LOOK_S = 0.01


class _Patience:
    """With one client: its clock begins anew whenever less is left to write."""

    def __init__(self, unsent: Callable[[], int], seconds: float) -> None:
        self._unsent, self._seconds = unsent, seconds
        self._left, self._since = unsent(), time.monotonic()

    def is_over(self) -> bool:
        """Look again; whether nothing was taken for the whole time."""
        before, self._left = self._left, self._unsent()
        if self._left < before:
            self._since = time.monotonic()
        return time.monotonic() >= self._since + self._seconds


class Connections:
    """The transports of one server; belongs to its event loop, `abort_soon` may be called from any thread."""

    def __init__(self) -> None:
        self._transports: dict[Address, asyncio.Transport] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def protocol(self) -> type[H11Protocol]:
        """The protocol of uvicorn, noting each connection here."""
        connections = self

        class Noted(H11Protocol):
            def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
                super().connection_made(transport)
                connections.add(self.client, transport, self.loop)

            def connection_lost(self, exc: Exception | None) -> None:
                connections.remove(self.client, self.transport)
                super().connection_lost(exc)

        return Noted

    def add(
        self, client: Address | None, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop
    ) -> None:
        """Note a new connection."""
        self._loop = loop
        if client is not None:
            self._transports[client] = transport

    def remove(self, client: Address | None, transport: asyncio.Transport) -> None:
        """Forget a connection that was lost."""
        if client is not None and self._transports.get(client) is transport:
            del self._transports[client]

    async def flushed(self, client: Address | None, seconds: float) -> None:
        """Wait until nothing of this client's answers is left to write.

        One that takes nothing for `seconds` is cut off.
        """
        patience = _Patience(lambda: self._unsent(client), seconds)
        while self._unsent(client):
            await asyncio.sleep(_LOOK_S)
            if patience.is_over():
                self.abort(client)
                return

    async def send(self, client: Address | None, sending: Coroutine[Any, Any, None], seconds: float) -> None:
        """Do `sending`, which waits while the client is slow.

        Raises:
            TimeoutError: the client took nothing for `seconds`.
        """
        if not self._unsent(client):
            await sending
            return
        patience = _Patience(lambda: self._unsent(client), seconds)
        task = asyncio.ensure_future(sending)
        try:
            while not task.done():
                await asyncio.wait({task}, timeout=min(1.0, seconds))
                if patience.is_over() and not task.done():
                    raise TimeoutError
            task.result()
        finally:
            task.cancel()

    def abort(self, client: Address | None) -> None:
        """Close a connection at once and drop what was not written."""
        transport = self._transports.get(client) if client is not None else None
        if transport is not None:
            transport.abort()

    def abort_soon(self, client: Address | None) -> None:
        """Ask the event loop to `abort`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abort, client)

    def _unsent(self, client: Address | None) -> int:
        transport: Any = self._transports.get(client) if client is not None else None
        return 0 if transport is None else int(transport.get_write_buffer_size())
