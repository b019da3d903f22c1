"""One connection as uvicorn's HTTP/1.1 protocol has it: noted, and ended when its client does not go on.

It gives up who sends no whole head of a request in time, and who takes nothing of what was written for it. Knows
nothing of what is asked or answered.
"""

import asyncio
import fcntl
import socket
import sys
import termios
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from uvicorn.protocols.http.h11_impl import H11Protocol

if TYPE_CHECKING:
    from service.connections import Connections

_HEAD_S = 15.0  # for the whole head of a request
_SURPLUS_S = 5.0  # for all of a connection that there is no room for


def untaken(transport: asyncio.WriteTransport) -> int:
    """Bytes that the other machine has not taken: the transport's, which it moves on in large steps, and the kernel's."""
    left = transport.get_write_buffer_size()
    sock: socket.socket | None = transport.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        left += int.from_bytes(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(4)), sys.byteorder)
    return left


class Patience:
    """With one client: its clock begins anew whenever less is left to take.

    Args:
        untaken: bytes that are left; see `untaken`.
        seconds: for which nothing may be taken.
    """

    def __init__(self, untaken: Callable[[], int], seconds: float) -> None:
        self._untaken, self._seconds = untaken, seconds
        self._left, self._since = untaken(), time.monotonic()

    def is_over(self) -> bool:
        """Look again; whether nothing was taken for the whole time."""
        before, self._left = self._left, self._untaken()
        if self._left < before:
            self._since = time.monotonic()
        return time.monotonic() >= self._since + self._seconds


class Noted(H11Protocol):
    """A connection that its `connections_noted` knows of until it is lost."""

    connections_noted: "Connections"
    _surplus = False
    _ending: asyncio.TimerHandle | None = None
    _patience: Patience | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a request, or, where there is no room, for anything that can be answered."""
        super().connection_made(transport)
        self._surplus = not self.connections_noted.add(self, self.client, transport, self.loop)
        if self._surplus:
            self._ending = self.loop.call_later(_SURPLUS_S, transport.abort)
        else:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is forgotten."""
        self._stop_waiting()
        self.connections_noted.remove(self, self.client, self.transport)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take a piece of a request."""
        if self._surplus:
            self.connections_noted.turn_away(self.transport)
            return
        super().data_received(data)
        if not self.is_idle:
            self._stop_waiting()
        elif self._ending is None:
            self._await_head()

    def resume_writing(self) -> None:
        """Most of what was written has been taken."""
        self._patience = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        """More was written than lay there before, which must not look as if nothing had been taken."""
        self._patience = None
        super().on_response_complete()

    def cut_if_stalled(self, seconds: float) -> None:
        """Abort if the client has taken nothing for so long; to be asked again and again.

        Only of what nobody adds to: while an answer is being written, bytes that are left say nothing of those taken.
        """
        if not self._unsent() or not (self.is_idle or self.flow.write_paused or self.transport.is_closing()):
            self._patience = None
        elif self._patience is None:
            self._patience = Patience(lambda: untaken(self.transport), seconds)
        elif self._patience.is_over():
            self.transport.abort()

    def _unsent(self) -> int:
        return self.transport.get_write_buffer_size()

    def _await_head(self) -> None:
        self._ending = self.loop.call_later(_HEAD_S, self._give_up)

    def _stop_waiting(self) -> None:
        if self._ending is not None:
            self._ending.cancel()
            self._ending = None

    def _give_up(self) -> None:
        self._ending = None
        if self.is_idle:
            self.transport.close()  # what it has not taken yet is left to `cut_if_stalled`
