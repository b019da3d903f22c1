"""Open sockets by the address of their client, so that what must not be sent any more is not.

A response that has ended for the app may still lie in its transport because the client reads slowly.
Revocation waits for such bytes, and throws away those that nobody takes.

There is room for so many connections. One more closes the one that has been idle longest; where all are busy it is
answered 503 without a look at what it asks for. None is kept that does not send the whole head of a request soon.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

Address = tuple[str, int]
_LOOK_S = 0.01
_HEAD_S = 15.0  # for the whole head of a request
_OTHER_FILES = 256  # that a process has open beside its connections: database, logs, sealed files
_UNSENT = 128 << 10  # bytes of one connection that the kernel holds unsent


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
    """The transports of one server; belongs to its event loop, `abort_soon` may be called from any thread.

    Args:
        most: open at once; fewer if the process may not open so many files.
        surplus: the whole response on a connection that there is no room for.
        told: hears how long such a response took, in seconds.
    """

    def __init__(self, most: int, surplus: bytes, told: Callable[[float], None]) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(16, min(most, files - _OTHER_FILES)) if files != resource.RLIM_INFINITY else most
        self._surplus, self._told = surplus, told
        self._transports: dict[Address, asyncio.Transport] = {}
        self._protocols: dict[H11Protocol, None] = {}  # by the time that they came
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def count(self) -> int:
        """Open connections."""
        return len(self._protocols)

    def protocol(self) -> type[H11Protocol]:
        """The protocol of uvicorn, noting each connection here."""
        return type("Noted", (_Noted,), {"connections_noted": self})

    def add(
        self,
        protocol: H11Protocol,
        client: Address | None,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
    ) -> bool:
        """Note a new connection; whether there is room for it, for which an idle one may have to go."""
        self._loop = loop
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        self._protocols[protocol] = None
        if client is not None:
            self._transports[client] = transport
        return len(self._protocols) <= self._most or self._close_idle(protocol)

    def _close_idle(self, beside: H11Protocol) -> bool:
        """Close the oldest connection that has no request under way; whether there was one."""
        for protocol in self._protocols:
            if protocol is not beside and _is_idle(protocol):
                if not protocol.transport.is_closing():
                    protocol.transport.abort()
                del self._protocols[protocol]
                return True
        return False

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Answer whatever was asked, once, and close."""
        began = time.perf_counter()
        if not transport.is_closing():
            transport.write(self._surplus)
            transport.close()
            self._told(time.perf_counter() - began)

    def remove(self, protocol: H11Protocol, client: Address | None, transport: asyncio.Transport) -> None:
        """Forget a connection that was lost."""
        self._protocols.pop(protocol, None)
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


class _Noted(H11Protocol):
    """A connection that is noted, and closed when it sends no whole head of a request in time."""

    connections_noted: Connections
    _surplus = False
    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._surplus = not self.connections_noted.add(self, self.client, transport, self.loop)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self.connections_noted.remove(self, self.client, self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._surplus:
            self.connections_noted.turn_away(self.transport)
            return
        super().data_received(data)
        if not _is_idle(self):
            self._stop_waiting()
        elif self._head is None:
            self._await_head()

    def _await_head(self) -> None:
        self._head = self.loop.call_later(_HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _give_up(self) -> None:
        self._head = None
        if _is_idle(self):
            self.transport.close()


def _is_idle(protocol: H11Protocol) -> bool:
    """Whether no request is under way."""
    return protocol.cycle is None or protocol.cycle.response_complete
