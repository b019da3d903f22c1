"""Events of one request's rows on their way from the engine's thread to the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from prefix_engine import Delta, Engine, Event, Failed, Request
from service.tickets import Ticket, Tickets


class ClientGone(Exception):
    """The client closed its connection; nobody waits for the answer."""


class Outbox:
    """What the rows of one request have said and nobody has read yet.

    Bounded by the rows' own max_tokens: a slow reader holds memory for its answer, never a row.

    Args:
        ticket: of the request.
        tickets: that it is one of.
        between: told, on the engine's thread, the seconds between one token of a row and the next.
    """

    def __init__(self, ticket: Ticket, tickets: Tickets, between: Callable[[float], None]) -> None:
        self._ticket, self._tickets, self.between = ticket, tickets, between
        ticket.fail = self.fail
        self._loop = asyncio.get_running_loop()
        self._events: deque[tuple[int, Event]] = deque()
        self._filled = asyncio.Event()
        self._gone = False
        self._open = 0

    def submit(self, engine: Engine, requests: tuple[Request, ...]) -> None:
        """Queue all rows at once.

        Raises:
            RequestError, QueueFullError: none of them was started, or all are cancelled.
        """
        try:
            for row, request in enumerate(requests):
                self._ticket.generations.append(engine.submit(request, _Sink(self, row, request.max_tokens)))
                self._open += 1
        except BaseException:
            self._ticket.cancel()
            raise

    async def take(self) -> list[tuple[int, Event]]:
        """Wait for events, each with the number of its row; an empty list when all rows have ended.

        Raises:
            ClientGone: the client went away first.
        """
        while not self._events:
            if self._gone:
                raise ClientGone
            if not self._open:
                return []
            await self._filled.wait()
            self._filled.clear()
        taken = list(self._events)
        self._events.clear()
        self._open -= sum(not isinstance(event, Delta) for _, event in taken)
        return taken

    def hang_up(self) -> None:
        """The client is gone."""
        self._gone = True
        self._filled.set()

    def fail(self, failed: Failed) -> None:
        """End the answer, from any thread, though no row has."""
        with suppress(RuntimeError):  # the event loop has ended: nobody waits
            self._loop.call_soon_threadsafe(self.put, 0, failed)

    def put(self, row: int, event: Event) -> None:
        """Take an event in; on the event loop."""
        self._events.append((row, event))
        self._filled.set()

    def deliver(self, row: int, event: Event, *, first: bool, spent: int) -> None:
        """Take an event over from the engine's thread; `spent` tokens less are to come."""
        if first:
            self._tickets.started(self._ticket)
        self._ticket.tokens -= spent
        self._loop.call_soon_threadsafe(self.put, row, event)


class _Sink:
    """Where one row's events go; called on the engine's thread."""

    __slots__ = ("_last", "_left", "_outbox", "_row", "_started")

    def __init__(self, outbox: Outbox, row: int, tokens: int) -> None:
        self._outbox, self._row, self._left, self._started = outbox, row, tokens, False
        self._last: float | None = None  # when its last tokens came

    def __call__(self, event: Event) -> None:
        first, self._started = not self._started, True
        if isinstance(event, Delta) and event.tokens:
            self._time(len(event.tokens))
        spent = min(self._left, len(event.tokens)) if isinstance(event, Delta) else self._left
        self._left -= spent
        self._outbox.deliver(self._row, event, first=first, spent=spent)

    def _time(self, tokens: int) -> None:
        """Tokens that came together, since a stop string might have begun with them, share their wait."""
        now, last = time.monotonic(), self._last
        self._last = now
        if last is not None:
            for _ in range(tokens):
                self._outbox.between((now - last) / tokens)
