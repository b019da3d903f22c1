"""Requests under way: which owner's prefix each uses and what it holds, so that it can be stopped.

A ticket is opened before the engine hears of its request and ended when the last byte of its answer has
left; an owner that was erased or a version that is gone can open none. Ids of owners and versions are
never given twice, so what is gone stays gone; it is remembered until all have ended that had found it before.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

from prefix_engine import Failed, Generation, Gone
from prefix_store.errors import NotFound
from prefix_store.scope import Owner
from prefix_store.version_rows import Resolved
from service.connections import Address
from service.pace import Pace
from service.shares import Full, Shares

MOST_TRANSFERS = 8  # files of one tenant that are sent or taken at once

# Why a request found no place: its tenant's `max_queued`, its part of the line, the whole line.
Refused = Literal["tenant_queue", "tenant_share", "queue"]


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks for: rows, the most tokens that they generate, and positions, their prompts included."""

    rows: int
    tokens: int
    positions: int


class TransfersFull(Exception):
    """Transfers must end before another begins: the tenant's, or, of files that are sent, those of `all`."""

    def __init__(self, full: Full) -> None:
        super().__init__(full)
        self.full = full


@dataclass(eq=False, slots=True)
class Ticket:
    """One request under way.

    Attributes:
        tenant_id: whose queue it stands in.
        owner: owner of the prefix or file that it answers from; None for the base model.
        version_id: of the prefix, or of a checkpoint's.
        job_id: that made it.
        client: address of its socket.
        tokens: most tokens that its rows may still generate.
        demand: what `tokens` was at first.
        waiting: rows that have said nothing yet.
        positions: of its prompts and of what they may generate, held in the line until the ticket ends.
        revoked: nothing more may be sent of its answer.
        file_id: the file that it sends or takes.
        file_bytes: that it holds in memory of it.
        ended: its last byte has left, or its connection is cut.
        fail: ends its answer with an error, though the engine says nothing; None if there is no answer of the engine's.
    """

    tenant_id: str
    owner: Owner | None
    version_id: str | None
    client: Address | None
    tokens: int = 0
    demand: int = 0
    waiting: int = 0
    positions: int = 0
    revoked: bool = False
    file_id: str | None = None
    file_bytes: int = 0
    job_id: str | None = None
    ended: threading.Event = field(default_factory=threading.Event)
    generations: list[Generation] = field(default_factory=list)
    fail: Callable[[Failed], None] | None = None

    @property
    def ids(self) -> set[str]:
        """Whose end is its end: tenant, owner, version, job, file."""
        owner = None if self.owner is None else self.owner.owner_id
        ids = (self.tenant_id, owner, self.version_id, self.job_id, self.file_id)
        return {one for one in ids if one is not None}

    def cancel(self) -> None:
        """Free its rows by the next step."""
        for generation in self.generations:
            generation.cancel()


class Tickets:
    """All tickets of this process.

    Attributes:
        rows: that wait, of all tenants.
        tokens: positions of requests that wait, run, or whose answers have not left: what they hold in memory.
        files: bytes of files that are being sent.
        pace: at which tokens leave.
    """

    def __init__(
        self, most_rows: int = 4096, most_tokens: int = 1 << 20, most_file_bytes: int = 256 << 20
    ) -> None:
        self.rows, self.tokens, self.pace = Shares(most_rows), Shares(most_tokens), Pace()
        self.files = Shares(most_file_bytes)
        self._open: set[Ticket] = set()
        self._asked: Counter[str] = Counter()
        self._gone = Gone()
        self._lock = threading.Lock()

    def open(
        self,
        tenant_id: str,
        client: Address | None,
        resolved: Resolved | None = None,
        name: str = "",
    ) -> Ticket:
        """Begin a request that answers from a version, asked for as `name`.

        Raises:
            NotFound: the owner or version is gone; the same as if it had never been found.
        """
        if resolved is None:
            return self._opened(Ticket(tenant_id, None, None, client), NotFound("model", name))
        ticket = Ticket(tenant_id, resolved.owner, resolved.version_id, client, job_id=resolved.job_id)
        return self._opened(ticket, NotFound("model", name))

    def open_file(self, owner: Owner, client: Address | None, file_id: str, held: int = 0) -> Ticket:
        """Begin to send or take a file of an owner, of which `held` bytes lie in memory meanwhile.

        One that is larger than a tenant can ever have counts as so much: it was taken when that was more.

        Raises:
            NotFound: the owner or the file is gone.
            TransfersFull: the tenant has `MOST_TRANSFERS` under way, or there is no room in memory for this one.
        """
        held = min(held, self.files.bound // 2)
        ticket = Ticket(owner.tenant_id, owner, None, client, file_id=file_id, file_bytes=held)
        return self._opened(ticket, NotFound("file", file_id))

    def _opened(self, ticket: Ticket, gone: NotFound) -> Ticket:
        with self._lock:
            if self._gone.any_of(ticket.ids):
                raise gone
            if ticket.file_id is not None and self._transfers(ticket.tenant_id) >= MOST_TRANSFERS:
                raise TransfersFull("tenant")
            full = self.files.take(ticket.tenant_id, ticket.file_bytes)
            if full is not None:
                raise TransfersFull(full)
            self._open.add(ticket)
        return ticket

    def _transfers(self, tenant_id: str) -> int:
        return sum(t.file_id is not None and t.tenant_id == tenant_id for t in self._open)

    def end(self, ticket: Ticket) -> None:
        """Forget a request whose answer has left."""
        with self._lock:
            self._open.discard(ticket)
            self._asked[ticket.tenant_id] += ticket.demand
            self.rows.give(ticket.tenant_id, ticket.waiting)
            self.files.give(ticket.tenant_id, ticket.file_bytes)
            if ticket.positions:
                self.tokens.give(ticket.tenant_id, ticket.positions)
                self.pace.left(ticket.positions, empty=not self.tokens.total)
            ticket.waiting, ticket.positions, ticket.file_bytes, ticket.fail = 0, 0, 0, None
        ticket.ended.set()

    def queue(
        self, ticket: Ticket, demand: Demand, most: int, budget: int | None = None, since: int = 0
    ) -> Refused | Literal["spent"] | None:
        """Count rows that wait for their turn, in one step with the look at the limits; None if they may.

        "tenant_queue" if the tenant would have over `most` of them; "tenant_share" and "queue" as `Shares` says;
        "spent" if its requests under way, and those that have ended since `asked` answered `since`, may have used
        up `budget` tokens.
        """
        tenant_id = ticket.tenant_id
        with self._lock:
            refused = self.refusal(tenant_id, demand, most)
            if refused is not None:
                return refused
            asked = self._asked[tenant_id] - since
            asked += sum(t.demand for t in self._open if t.tenant_id == tenant_id)
            if budget is not None and asked >= budget:
                return "spent"
            ticket.tokens = ticket.demand = demand.tokens
            ticket.waiting, ticket.positions = demand.rows, demand.positions
            self.rows.take(tenant_id, demand.rows)
            self.tokens.take(tenant_id, demand.positions)
            self.pace.entered()
            return None

    def refusal(self, tenant_id: str, demand: Demand, most: int) -> Refused | None:
        """Why a tenant with `most` rows that may wait gets no place for so much now; None if it does."""
        if self.rows.held(tenant_id) + demand.rows > most:
            return "tenant_queue"
        full = self.rows.refusal(tenant_id, demand.rows) or self.tokens.refusal(tenant_id, demand.positions)
        return None if full is None else "tenant_share" if full == "tenant" else "queue"

    def seconds_until(self, tenant_id: str, demand: Demand) -> float | None:
        """About how long until there is a place for it, by the pace at which the line empties now.

        Tenants are served alike, so that of what leaves each sees its part. All who are refused come again, so that
        at least an eighth of what is in the way must have left. None: nothing has left yet.
        """
        own, tenants = self.tokens.held(tenant_id), max(1, self.tokens.holders())
        lacking = self.tokens.lacking(tenant_id, demand.positions)
        with self._lock:
            return self.pace.seconds(max(lacking, own * tenants // 8))

    def asked(self, tenant_id: str) -> int:
        """Tokens that a tenant's ended requests had asked for; to be taken before its use is looked up."""
        with self._lock:
            return self._asked[tenant_id]

    def started(self, ticket: Ticket) -> None:
        """One of its rows waits no more."""
        with self._lock:
            if ticket.waiting:
                ticket.waiting -= 1
                self.rows.give(ticket.tenant_id, 1)

    def tokens_ahead(self, tenant_id: str) -> int:
        """Most tokens that are generated until a tenant's requests under way have theirs.

        Served fairly, no other tenant gets more meanwhile than this one, nor more than it asked for.
        """
        asked: Counter[str] = Counter()
        with self._lock:
            for ticket in self._open:
                asked[ticket.tenant_id] += ticket.tokens
        own = asked[tenant_id]
        return sum(min(own, tokens) for tokens in asked.values())

    def in_use(self) -> set[str]:
        """Version ids that requests under way name."""
        with self._lock:
            return {ticket.version_id for ticket in self._open if ticket.version_id is not None}

    def owned(self) -> list[Ticket]:
        """Requests under way whose answers are some owner's."""
        with self._lock:
            return [ticket for ticket in self._open if ticket.owner is not None]

    def count(self) -> int:
        """Requests under way."""
        with self._lock:
            return len(self._open)

    def fail(self, failed: Failed) -> None:
        """End every answer that waits for the engine, without it."""
        with self._lock:
            waiting = [ticket.fail for ticket in self._open if ticket.fail is not None]
        for fail in waiting:
            fail(failed)

    def revoke(self, ids: Iterable[str]) -> list[Ticket]:
        """Shut out tenants, owners, versions or jobs, by their ids, for good; the tickets that must end."""
        gone = set(ids)
        with self._lock:
            self._gone.add(gone)
            found = [ticket for ticket in self._open if ticket.ids & gone]
            for ticket in found:
                ticket.revoked = True
        return found
