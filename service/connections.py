"""Open sockets by the address of their client, so that what must not be sent any more is not.

A response that has ended for the app may still lie in its transport because the client reads slowly.
Revocation waits for such bytes, and throws away those that nobody takes.

There is room for so many connections. One more closes the one that has been idle longest; where all are busy it is
answered 503 without a look at what it asks for. None is kept that does not send the whole head of a request soon, nor
one that takes nothing of what was written for it, whether anybody waits for that or not.
"""

import asyncio
import resource
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Any

from service.connection import Noted, Patience, untaken

Address = tuple[str, int]
_LOOK_S = 0.01
_CUT_LOOK_S = 1.0  # at most, between looks at who takes nothing
_OTHER_FILES = 256  # open beside connections: database, logs, sealed files, who is turned away
_TURNED_AWAY = 64  # connections at once that are told so; of more, those that have waited longest are cut
_UNSENT = 128 << 10  # bytes of one connection that the kernel holds unsent


class Connections:
    """The transports of one server; belongs to its event loop, `abort_soon` may be called from any thread.

    Args:
        most: open at once; fewer if the process may not open so many files.
        surplus: the whole response on a connection that there is no room for.
        told: hears how long such a response took, in seconds.
        stall_seconds: a connection whose client takes nothing of what is left to write for so long is cut.
    """

    def __init__(
        self, most: int, surplus: bytes, told: Callable[[float], None], stall_seconds: float
    ) -> None:
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = max(16, min(most, files - _OTHER_FILES)) if files != resource.RLIM_INFINITY else most
        self._surplus, self._told = surplus, told
        self._transports: dict[Address, asyncio.Transport] = {}
        self._protocols: dict[Noted, None] = {}  # by the time that they came
        self._leaving: set[Noted] = set()  # of these: aborted to make room, lost in the loop's next turn
        self._surplus_open: dict[Noted, None] = {}  # to be told that there is no room; likewise
        self._stall_seconds = stall_seconds
        self._looking = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def count(self) -> int:
        """Open connections, without those that are only told that there is no room."""
        return len(self._protocols)

    def protocol(self) -> type[Noted]:
        """The protocol of uvicorn, noting each connection here."""
        return type("Noted", (Noted,), {"connections_noted": self})

    def add(
        self,
        protocol: Noted,
        client: Address | None,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
    ) -> bool:
        """Note a new connection; whether there is room for it, for which an idle one may have to go."""
        self._loop = loop
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        if not self._has_room and not self._close_idle():
            self._keep_for_an_answer(protocol)
            return False
        self._protocols[protocol] = None
        if client is not None:
            self._transports[client] = transport
        if not self._looking:
            self._looking = True
            self._look_later(loop)
        return True

    @property
    def _has_room(self) -> bool:
        return len(self._protocols) - len(self._leaving) < self._most

    def _keep_for_an_answer(self, protocol: Noted) -> None:
        """Apart from the others: it takes nobody's place, and is not what is closed to make room."""
        if len(self._surplus_open) >= _TURNED_AWAY:
            oldest = next(iter(self._surplus_open))
            del self._surplus_open[oldest]
            oldest.transport.abort()
        self._surplus_open[protocol] = None

    def _close_idle(self) -> bool:
        """Cut the oldest connection that has no request under way; whether there is room now.

        Also one that is closing already: while its client reads nothing, that may take for ever. It counts until it
        is lost.
        """
        for protocol in self._protocols:
            done = protocol.is_idle or protocol.transport.is_closing()
            if done and protocol not in self._leaving:
                self._leaving.add(protocol)
                protocol.transport.abort()
                break
        return self._has_room

    def _look_later(self, loop: asyncio.AbstractEventLoop) -> None:
        loop.call_later(min(_CUT_LOOK_S, self._stall_seconds), self._cut_stalled, loop)

    def _cut_stalled(self, loop: asyncio.AbstractEventLoop) -> None:
        for protocol in self._protocols:
            protocol.cut_if_stalled(self._stall_seconds)
        self._looking = bool(self._protocols)
        if self._looking:
            self._look_later(loop)

    def turn_away(self, transport: asyncio.Transport) -> None:
        """Answer whatever was asked, once, and close."""
        began = time.perf_counter()
        if not transport.is_closing():
            transport.write(self._surplus)
            transport.close()
            self._told(time.perf_counter() - began)

    def remove(self, protocol: Noted, client: Address | None, transport: asyncio.Transport) -> None:
        """Forget a connection that was lost."""
        self._protocols.pop(protocol, None)
        self._leaving.discard(protocol)
        self._surplus_open.pop(protocol, None)
        if client is not None and self._transports.get(client) is transport:
            del self._transports[client]

    async def flushed(self, client: Address | None, seconds: float) -> None:
        """Wait until nothing of this client's answers is left to write.

        One that takes nothing for `seconds` is cut off.
        """
        patience = Patience(lambda: self._untaken(client), seconds)
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
        patience = Patience(lambda: self._untaken(client), seconds)
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
        transport = self._transport(client)
        if transport is not None:
            transport.abort()

    def abort_soon(self, client: Address | None) -> None:
        """Ask the event loop to `abort`."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.abort, client)

    def _unsent(self, client: Address | None) -> int:
        transport = self._transport(client)
        return 0 if transport is None else transport.get_write_buffer_size()

    def _untaken(self, client: Address | None) -> int:
        transport = self._transport(client)
        return 0 if transport is None else untaken(transport)

    def _transport(self, client: Address | None) -> asyncio.Transport | None:
        return self._transports.get(client) if client is not None else None
