"""Who may start now: rate, quota, queue and deadline, all before the first byte of an answer.

429 is the tenant's own limit, 503 ours; both say when to come again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from math import ceil

from prefix_engine import Engine
from prefix_store.rates import Rates
from prefix_store.tenants import Tenant
from service.door import Door
from service.errors import FINAL, ApiError
from service.tickets import Demand, Ticket, Tickets

_DAY_S = 86_400.0
_SAMPLE_S = 1.0
_OLD = 3  # samples: what took longer may have been idle in between
_FULL = 0.75  # of the pages for keys and values


@dataclass(frozen=True, slots=True)
class Used:
    """Tokens of a tenant's day so far, and what `Tickets.asked` said before they were looked up."""

    tokens: int
    asked: int


class Admission:
    """The door of the engine's queue; `token_seconds` says what lay between two tokens of a row lately."""

    def __init__(
        self, engine: Engine, tickets: Tickets, rates: Rates, door: Door, token_seconds: Callable[[], float]
    ) -> None:
        self._engine, self._tickets, self._rates, self._door = engine, tickets, rates, door
        self._token_seconds = token_seconds
        self._speed = 0.0  # generated tokens a second while no more could be; 0 where that is not known
        self._sampled = (time.monotonic(), 0, False)

    def rate(self, tenant: Tenant) -> dict[str, str]:
        """Count a request of a tenant; headers that say what is left of its limit. It may wait for Redis.

        Raises:
            ApiError: 429, too many requests in a minute.
        """
        if tenant.requests_per_minute is None:
            return {}
        rate = self._rates.hit(tenant.id, tenant.requests_per_minute)
        wait = max(0.0, rate.reset_at - time.time())  # noqa: TID251 - the library counts in wall time
        headers = {
            "x-ratelimit-limit-requests": str(tenant.requests_per_minute),
            "x-ratelimit-remaining-requests": str(rate.remaining),
            "x-ratelimit-reset-requests": f"{ceil(wait * 1000)}ms",
        }
        if not rate.allowed:
            text = f"over {tenant.requests_per_minute} requests a minute; wait and send it again"
            raise ApiError(
                429, "rate_limit_exceeded", text, retry_after=wait or 1.0, headers=headers, refused="rate"
            )
        return headers

    @staticmethod
    def quota(tenant: Tenant, used: int) -> dict[str, str]:
        """Check the day's tokens; headers that say what is left.

        Raises:
            ApiError: 429, the quota is used up.
        """
        if tenant.tokens_per_day is None:
            return {}
        if used >= tenant.tokens_per_day:
            raise _used_up(tenant)
        return {
            "x-ratelimit-limit-tokens": str(tenant.tokens_per_day),
            "x-ratelimit-remaining-tokens": str(tenant.tokens_per_day - used),
        }

    def queue(self, tenant: Tenant, ticket: Ticket, demand: Demand, deadline_s: float, used: Used) -> None:
        """Take a place in the tenant's queue.

        Raises:
            ApiError: 400, more than ever fits; 429, the tenant's queue or its part of the line is full; 503, the
                line is, or the answer could not be ready in time.
        """
        if demand.rows > tenant.max_queued:
            text = (
                f"{demand.rows} rows are more than the {tenant.max_queued} that may wait; send less at once"
            )
            raise ApiError(400, "invalid_value", text, "n")
        if not (
            self._tickets.rows.may_ever_fit(demand.rows)
            and self._tickets.tokens.may_ever_fit(demand.positions)
        ):
            text = (
                f"{demand.rows} rows of {demand.positions} tokens in all are more than one request may queue"
            )
            raise ApiError(400, "invalid_value", f"{text}; send less at once", "max_tokens")
        if deadline_s <= 0:
            text = "the request's deadline passed before it could be queued"
            raise ApiError(503, "deadline_exceeded", text, retry_after=1.0, refused="deadline")
        wait = self._wait(tenant.id)
        if wait > deadline_s:
            text = f"about {wait:.0f} s of work wait, longer than the deadline of {deadline_s:.0f} s"
            late = min(60.0, wait - deadline_s + 1.0)
            raise ApiError(503, "overloaded", text, retry_after=late, refused="deadline")
        budget = None if tenant.tokens_per_day is None else tenant.tokens_per_day - used.tokens
        refused = self._tickets.queue(ticket, demand, tenant.max_queued, budget, used.asked)
        if refused == "spent":
            raise _used_up(tenant)
        if refused is not None:
            raise self._door.turned_away(tenant, refused, demand)
        self._door.learn(tenant, demand)

    def _wait(self, tenant_id: str) -> float:
        """Seconds until what the tenant has under way would be done.

        By the time between tokens lately and as many rows as there may be; or, where that is longer, by the tokens of
        the last second, if no more could come in it: else they tell what was asked for, not what there can be.
        """
        now, stats = time.monotonic(), self._engine.stats()
        at, generated, full = self._sampled
        if now - at >= _SAMPLE_S:
            more = stats.generated_tokens - generated
            crowded = stats.waiting > 0 and stats.pages_used > _FULL * stats.pages_total
            still = stats.running >= stats.rows or crowded
            told = full and still and now - at < _OLD * _SAMPLE_S
            self._speed = more / (now - at) if told else 0.0
            self._sampled = (now, stats.generated_tokens, still)
        ahead = self._tickets.tokens_ahead(tenant_id)
        at_best = ahead / max(stats.rows, stats.running) * self._token_seconds()
        return max(at_best, ahead / self._speed) if self._speed else at_best


def _used_up(tenant: Tenant) -> ApiError:
    text = f"the {tenant.tokens_per_day} tokens of this day (UTC) are used up or asked for"
    tomorrow = _DAY_S - time.time() % _DAY_S  # noqa: TID251 - the quota's day is wall time
    return ApiError(429, "insufficient_quota", text, retry_after=tomorrow, headers=FINAL, refused="quota")
