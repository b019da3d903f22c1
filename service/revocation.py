"""Follows the store's change feed and stops what was deleted, before it says that it has.

Three threads: one reads the feed and tells that this process lives, one acts, one watches the reader. A
process that can do one of the first two no more for `STALE_S` stops sending by itself, because the others will soon
count it dead.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import structlog

from prefix_engine import Engine
from prefix_store import Store
from prefix_store.db import CHANGES
from prefix_store.errors import FeedGap, NoRoom
from prefix_store.failpoints import failpoint
from prefix_store.rows import Change
from service.connections import Connections
from service.last_acts import within
from service.residency import Residency
from service.reuse import Reuse
from service.tickets import Ticket, Tickets

log = structlog.get_logger("service")

POLL_S = 0.05
# Between looks at answers that are about to end: a deletion waits no longer than that for a look.
_SOON_S = 0.005
BEAT_S = 1.0
_END_S = 5.0
STALE_S = 2.0
_LOOK_S = 0.1
GRACE_S = 0.5  # for an answer to end by itself before its connection is cut
# The least after which others may count a process dead. By then it has cut everybody off, 3.7 s after its last beat at
# the latest: for BEAT_S it may have read without a beat, it is stale STALE_S later, a look notices that, and one that
# comes GRACE_S later cuts. A tenth more is for the cut itself.
DEAD_AFTER_S = 3.8
_LOAD_S = 3.0  # the same where the engine has not let go: it may wait for a load that hangs
_AGAIN_S = 1.0  # it is cut once more, if that did not end it


@dataclass(slots=True)
class _Ending:
    """What is gone up to the change `seq`, and its answers that have not ended.

    `revoked` is set when the engine has let go of its versions; `cut_at`: when answers are cut next.
    """

    seq: int
    versions: set[str]
    tickets: Sequence[Ticket] = ()
    revoked: threading.Event = field(default_factory=threading.Event)
    cut_at: float = field(default_factory=lambda: time.monotonic() + _LOAD_S)
    let_go: bool = False
    cut: bool = False

    @property
    def look_s(self) -> float:
        """Seconds until it is worth a look: what does not end by itself may take long."""
        soon = (self.tickets or not self.revoked.is_set()) and not self.cut and time.monotonic() < self.cut_at
        return _SOON_S if soon else POLL_S


class Revocation:
    """This process's part in every deletion."""

    def __init__(
        self,
        store: Store,
        engine: Engine,
        residency: Residency,
        reuse: Reuse,
        tickets: Tickets,
        connections: Connections,
    ) -> None:
        self._store, self._engine, self._residency, self._reuse = store, engine, residency, reuse
        self._tickets, self._connections = tickets, connections
        self._process_id = ""
        self._read_to = self._stopped_to = self._acted_to = 0
        self._seen: Change | None = None  # the change at `_read_to`
        self._fresh = 0.0
        self._todo: deque[Change] = deque()
        self._wake = threading.Event()
        self._work = threading.Event()
        self._stopping = False
        self.broken = False
        self._threads = [
            threading.Thread(target=self._follow, name="feed-reader", daemon=True),
            threading.Thread(target=self._act, name="feed-actor", daemon=True),
            threading.Thread(target=self._watch, name="feed-watch", daemon=True),
        ]

    def start(self) -> None:
        """Join the feed, then follow it; from here on a delete waits for this process."""
        began = time.monotonic()
        self._process_id = self._store.feed.join("service")
        self._read_to = self._stopped_to = self._acted_to = self._store.feed.position()
        self._fresh = began
        for thread in self._threads:
            thread.start()
        self._store.wakes.listen(CHANGES, self.look_now)

    def stop(self) -> None:
        """Leave the feed; nothing may be served afterwards.

        A database that stands still is not waited for: others will soon count this process dead.
        """
        self._stopping = True
        self._wake.set()
        self._work.set()
        give_up = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, give_up - time.monotonic()))
        within(_END_S, lambda: self._store.feed.leave(self._process_id), "feed-leaves")

    def look_now(self) -> None:
        """Read the feed without waiting for the next poll: somebody has just written to it."""
        self._wake.set()

    @property
    def stale(self) -> bool:
        """Whether what was last seen of the feed, and stopped, is too old for anything to be sent."""
        return self.broken or self.age > STALE_S

    @property
    def age(self) -> float:
        """Seconds since the feed was last read, and this process known to live, without an error.

        After a pause also since nothing that was read was left to be stopped.
        """
        return time.monotonic() - self._fresh

    # ---- reading

    def _follow(self) -> None:
        beaten, beaten_to, busy = 0.0, -1, False
        while not self._stopping and not self.broken:
            began = time.monotonic()
            told = began - beaten < STALE_S
            try:
                changes = self._store.feed.read(self._read_to, self._seen)
                if changes:
                    self._seen, self._read_to = changes[-1], changes[-1].seq
                    self._todo.extend(changes)
                    self._work.set()
                acted, generating = self._acted_to, self._engine.stats().running
                # The first text is told at once, for training to let it by; that there are none, with the next beat.
                if acted != beaten_to or began - beaten > BEAT_S or (generating and not busy):
                    self._store.feed.beat(self._process_id, acted, generating)
                    beaten, beaten_to, busy = began, acted, generating > 0
                # What happened before this moment has been seen; and who reads but cannot beat, as on a replica that
                # is left behind, is soon counted dead like one that cannot read.
                self._note(began, told=told)
            except NoRoom:  # where a beat finds no room, no deletion does
                self._note(began, told=True)
            except FeedGap:
                log.critical("feed.gap")
                self.broken = True
            except Exception as error:  # noqa: BLE001 - the loop's outermost edge: a database that is away
                log.warning("feed.failed", error=type(error).__name__)
            self._wake.wait(POLL_S)
            self._wake.clear()
        if self.broken:  # nothing is sent any more, so nobody needs to wait for this process
            self._stand_aside()

    def _note(self, began: float, *, told: bool) -> None:
        """What happened before `began` has been read, and, while others count on this process, is waited for.

        Who was stale may have been counted dead, and deletions acknowledged without it. So it is fresh again only when
        it was told to live (`told`) before it read, after which nothing is acknowledged without it, and when all that it
        has read is stopped. Where that takes long, since who acts is stuck, it stays stale for as long.
        """
        if not self.stale or (told and self._stopped_to >= self._read_to):
            self._fresh = began
        elif not told:
            self._wake.set()  # read once more, now that it is told

    def _stand_aside(self) -> None:
        while self._tickets.owned() and not self._stopping:
            time.sleep(_LOOK_S)
        if not self._stopping:
            self._store.feed.leave(self._process_id)

    def _watch(self) -> None:
        """While this process cannot see deletions, cut off whoever still takes what may be deleted.

        Answers end by themselves with an error, since each piece asks `stale`; what already lies in a
        transport, or waits for a slow reader, does not ask.
        """
        since: float | None = None
        while not self._stopping:
            time.sleep(_LOOK_S)
            if not self.stale:
                since = None
                continue
            since = time.monotonic() if since is None else since
            if time.monotonic() > since + GRACE_S:
                for ticket in self._tickets.owned():
                    self._connections.abort_soon(ticket.client)

    # ---- acting

    def _act(self) -> None:
        """Stop what is gone at once, and acknowledge it in its turn, when all of it has ended.

        An answer may take long to end, an upload whose storage hangs for one; what else is deleted does not go on
        meanwhile.
        """
        ending: deque[_Ending] = deque()
        while True:
            self._work.wait(min((one.look_s for one in ending), default=None))
            self._work.clear()
            if self._stopping:
                return
            try:
                self._get_on(ending)
            except Exception:
                log.exception("revocation.failed")
                self.broken = True  # what must end may go on: send nothing at all any more
                return

    def _get_on(self, ending: deque[_Ending]) -> None:
        changes = [self._todo.popleft() for _ in range(len(self._todo))]
        if changes:
            ending.append(self._stop_what_is_gone(changes))
        for one in ending:
            self._hurry(one)
        while ending and ending[0].revoked.is_set() and not ending[0].tickets:
            done = ending.popleft()
            self._residency.forget(done.versions)
            self._acted_to = done.seq
            self._wake.set()

    def _stop_what_is_gone(self, changes: Sequence[Change]) -> _Ending:
        gone: set[str] = set()
        versions: set[str] = set()
        callers: set[str] = set()
        for change in changes:
            if change.kind == "owner_erased":
                gone.add(change.owner_id or change.tenant_id)
                versions |= self._residency.of_owner(change.tenant_id, change.owner_id)
                callers |= self._reuse.ended(change.tenant_id, change.owner_id)
            elif change.kind == "version_gone":
                if change.version_id is not None:
                    versions.add(change.version_id)
                if change.job_id is not None:
                    gone.add(change.job_id)
                    versions |= self._residency.of_job(change.job_id)
        one = _Ending(changes[-1].seq, versions)
        if not gone and not versions:
            one.revoked.set()
            self._stopped(one.seq)
            return one
        failpoint("service.revoking")
        one.tickets = self._tickets.revoke(gone | versions)
        self._stopped(one.seq)
        # A ticket may have been opened since `of_owner` looked.
        versions |= {ticket.version_id for ticket in one.tickets if ticket.version_id is not None}
        one.revoked = self._engine.begin_revocation(versions)
        if callers:
            self._engine.forget(callers)
        log.info("revocation.begun", requests=len(one.tickets), versions=len(versions))
        return one

    def _stopped(self, seq: int) -> None:
        """Nothing of what is gone up to the change `seq` is sent any more: a reader that waits for that goes on."""
        self._stopped_to = seq
        if self.stale:
            self._wake.set()

    def _hurry(self, one: _Ending) -> None:
        """Forget answers that have ended, and cut the connections of those that do not end by themselves.

        They have their time from when the engine has let go: until then their rows may have nothing to end with.
        """
        one.tickets = [ticket for ticket in one.tickets if not ticket.ended.is_set()]
        now = time.monotonic()
        if one.revoked.is_set() and not one.let_go:
            one.let_go, one.cut_at = True, min(one.cut_at, now + GRACE_S)
        if not one.tickets or now < one.cut_at:
            return
        if one.cut:
            log.warning("revocation.waits", requests=len(one.tickets))
        for ticket in one.tickets:
            self._connections.abort_soon(ticket.client)
        one.cut, one.cut_at = True, now + _AGAIN_S
