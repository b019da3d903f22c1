"""Requests of a tenant in the last minute: counted in this process and, where there is Redis, by all of them together.

Without Redis each process lets a tenant have its limit; with it they share one. What this process has counted holds in
both cases, so that a Redis that was emptied or comes back does not begin a new minute.
"""

from dataclasses import dataclass

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from prefix_store.redis_link import RedisLink


@dataclass(frozen=True, slots=True)
class Rate:
    """Whether a request is let through, how many more there may be, and when the window ends (Unix time)."""

    allowed: bool
    remaining: int
    reset_at: float


class Rates:
    """Moving windows of a minute by tenant."""

    def __init__(self, link: RedisLink | None) -> None:
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._link, self._shared = link, None
        if link is not None:
            storage = RedisStorage("redis://", connection_pool=link.pool, key_prefix=link.key("rate"))
            self._shared = MovingWindowRateLimiter(storage)

    def hit(self, tenant_id: str, per_minute: int) -> Rate:
        """Count a request of a tenant if it is let through."""
        limit = RateLimitItemPerMinute(per_minute)
        shared = self._ask_all(limit, tenant_id)
        if shared is not None and not shared.allowed:
            return shared
        own = _hit(self._own, limit, tenant_id)
        if shared is None or not own.allowed or own.remaining < shared.remaining:
            return own
        return shared

    def _ask_all(self, limit: RateLimitItemPerMinute, tenant_id: str) -> Rate | None:
        limiter = self._shared
        if self._link is None or limiter is None:
            return None
        return self._link.ask(lambda _: _hit(limiter, limit, tenant_id), None)


def _hit(limiter: MovingWindowRateLimiter, limit: RateLimitItemPerMinute, tenant_id: str) -> Rate:
    allowed = limiter.hit(limit, tenant_id)
    window = limiter.get_window_stats(limit, tenant_id)
    return Rate(allowed, window.remaining, window.reset_time)
