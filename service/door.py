"""Who is turned away before anything is read, looked up or waited for: by what is counted in this process alone.

A refusal must cost less than an answer, or a flood of them takes the place of the answers. So what was learnt of a
caller at its last request, whose key it is and how many rows its tenant may queue, turns it away at once; it never
lets anybody in. Belongs to the event loop.
"""

import hashlib
import random
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from prefix_store.tenants import Tenant
from service.errors import ApiError, Refusal
from service.shares import Full, Shares
from service.tickets import Demand, Refused, Tickets

COMPLETIONS: Final = "/v1/completions"
_REMEMBERED = 4096  # keys and tenants
_RISE = 8  # the least that a tenant asks for rises by this part with each request that asks for more
_WAITED_FOR = 16  # part of the line that must come free, at most, before anybody of a tenant goes in again
_UNKNOWN_S = 1.0  # to come again after, when nothing has left the line yet
_LONGEST_S = 60.0

_TOLD: Final[dict[Refused, tuple[int, str, str]]] = {
    "tenant_queue": (429, "queue_full", "as many requests of this tenant wait as may (max_queued)"),
    "tenant_share": (429, "queue_share_full", "this tenant has its part of the queue (requests and tokens)"),
    "queue": (503, "overloaded", "the queue is full (requests and tokens of all tenants)"),
}


@dataclass(frozen=True, slots=True)
class _Habit:
    """Of one tenant: rows that may wait, and positions that must be free before another of its requests is let in.

    That is the least that it asked for lately; when one was refused in the queue, as much as that one wanted, so that
    what is small does not pass what is large for ever, nor the same refusal come again at a higher price.
    """

    max_queued: int
    least: int


@dataclass(slots=True)
class Visit:
    """One request inside; `entering`: it has not come to the queue yet."""

    tenant_id: str
    held: int
    entering: bool


class Door:
    """The first look at a request.

    Args:
        tickets: what is under way.
        most_requests: of one tenant at once.
        most_bytes: of bodies, of all tenants.
    """

    def __init__(self, tickets: Tickets, most_requests: int, most_bytes: int) -> None:
        self._tickets, self._most = tickets, most_requests
        self.bytes = Shares(most_bytes)
        self._inside: Counter[str] = Counter()
        self._entering: Counter[str] = Counter()
        self._keys: OrderedDict[bytes, str] = OrderedDict()
        self._habits: OrderedDict[str, _Habit] = OrderedDict()

    def knock(self, token: str, path: str, length: int) -> None:
        """Turn away whoever is known and cannot be taken now; ApiError, 429 or 503."""
        tenant_id = self._keys.get(_digest(token))
        if tenant_id is not None:
            self._look(tenant_id, path, length)

    def enter(self, tenant_id: str, token: str, path: str, length: int) -> Visit:
        """Let an authenticated request of `length` bytes in.

        Raises:
            ApiError: 429 or 503, a bound is reached.
        """
        _remember(self._keys, _digest(token), tenant_id)
        self._look(tenant_id, path, length)
        self.bytes.take(tenant_id, length)
        self._inside[tenant_id] += 1
        visit = Visit(tenant_id, length, entering=path == COMPLETIONS)
        self._entering[tenant_id] += visit.entering
        return visit

    def grow(self, visit: Visit, more: int) -> None:
        """What a request holds is `more` bytes than its body's own, now that it has come and will be read.

        Raises:
            ApiError: 429 or 503, there is no room for it.
        """
        if (full := self.bytes.take(visit.tenant_id, more)) is not None:
            raise self._no_bytes(visit.tenant_id, full)
        visit.held += more

    def queued(self, visit: Visit) -> None:
        """It stands in the queue, or was refused there."""
        if visit.entering:
            visit.entering = False
            _less(self._entering, visit.tenant_id)

    def leave(self, visit: Visit) -> None:
        """Its answer is over."""
        self.queued(visit)
        _less(self._inside, visit.tenant_id)
        self.bytes.give(visit.tenant_id, visit.held)

    def learn(self, tenant: Tenant, demand: Demand) -> None:
        """What the store says of a tenant, and what it asks for."""
        known = self._habits.get(tenant.id)
        least = (
            demand.positions
            if known is None
            else min(demand.positions, known.least + known.least // _RISE + 1)
        )
        _remember(self._habits, tenant.id, _Habit(tenant.max_queued, least))

    def turned_away(self, tenant: Tenant, refused: Refused, demand: Demand) -> ApiError:
        """The answer to a request that came as far as the queue and found no place."""
        wanted = min(demand.positions, self._tickets.tokens.bound // _WAITED_FOR)
        _remember(self._habits, tenant.id, _Habit(tenant.max_queued, wanted))
        return self.refuse(tenant.id, refused, demand)

    def refuse(self, tenant_id: str, refused: Refused, demand: Demand) -> ApiError:
        """The answer to a request that the queue has no place for."""
        status, code, text = _TOLD[refused]
        wait = self._tickets.seconds_until(tenant_id, demand)
        return _later(status, code, text, refused, wait)

    def _look(self, tenant_id: str, path: str, length: int) -> None:
        if self._inside[tenant_id] >= self._most:
            text = f"{self._most} requests of this tenant are under way (tenant_requests)"
            wait = self._tickets.seconds_until(tenant_id, Demand(1, 0, 0))
            raise _later(429, "too_many_requests", text, "tenant_requests", wait)
        if (full := self.bytes.refusal(tenant_id, length)) is not None:
            raise self._no_bytes(tenant_id, full)
        if path == COMPLETIONS:
            self._look_at_queue(tenant_id)

    def _no_bytes(self, tenant_id: str, full: Full) -> ApiError:
        wait = self._tickets.seconds_until(tenant_id, Demand(1, 0, 0))
        text = "bodies of requests under way fill the memory that is kept for them (held_bytes)"
        if full == "tenant":
            return _later(429, "too_many_requests", f"this tenant's {text}", "tenant_bytes", wait)
        return _later(503, "overloaded", text, "bytes", wait)

    def _look_at_queue(self, tenant_id: str) -> None:
        """Whether the least that the tenant asks for would find a place behind as little for those on their way."""
        habit, entering = self._habits.get(tenant_id), self._entering[tenant_id]
        if habit is None or not (entering or self._tickets.tokens.held(tenant_id)):
            return  # a tenant with nothing under way is looked at closely
        demand = Demand(entering + 1, 0, (entering + 1) * habit.least)
        refused = self._tickets.refusal(tenant_id, demand, habit.max_queued)
        if refused is not None:
            raise self.refuse(tenant_id, refused, demand)


def _later(status: int, code: str, text: str, refused: Refusal, wait: float | None) -> ApiError:
    """Spread over a quarter more, so that all who are refused now do not come again at once."""
    wait = _UNKNOWN_S if wait is None else wait
    wait = min(_LONGEST_S, max(1.0, wait)) * random.uniform(1.0, 1.25)  # noqa: S311 - no secret
    return ApiError(status, code, f"{text}; send it again later", retry_after=wait, refused=refused)


def _digest(token: str) -> bytes:
    """What is kept of a key: no key."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _less(counts: Counter[str], tenant_id: str) -> None:
    counts[tenant_id] -= 1
    if not counts[tenant_id]:
        del counts[tenant_id]


def _remember(known: OrderedDict[Any, Any], key: bytes | str, value: object) -> None:
    known[key] = value
    known.move_to_end(key)
    if len(known) > _REMEMBERED:
        known.popitem(last=False)
