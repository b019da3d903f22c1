"""The way to a Redis server that may be slow, empty or gone: then nobody waits for it.

Redis is a hint and never the truth. After a failure it is not asked again for a while, by one caller then, so that a
dead server costs a request nothing. Every key and channel begins with the installation's prefix.
"""

import logging
from collections.abc import Callable
from typing import Final, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.client import PubSub
from redis.retry import Retry

from prefix_store.breaker import Breaker, Shut
from prefix_store.errors import StoreError

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_S: Final = 0.25  # the longest that one answer is waited for
_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 30.0
_HEALTH_S = 10
FAILURES: Final = (redis.RedisError, OSError, ValueError)


class RedisLink:
    """One server and the keys there that are ours.

    Raises:
        StoreError: the URL is none of Redis.
    """

    def __init__(self, url: str, prefix: str) -> None:
        self._prefix = prefix
        # A connection that the server has closed meanwhile is replaced at once; time-outs are never tried again.
        again = Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,))
        try:
            self.pool = redis.ConnectionPool.from_url(
                url,
                socket_timeout=ANSWER_S,
                socket_connect_timeout=ANSWER_S,
                health_check_interval=_HEALTH_S,
                retry=again,
            )
        except ValueError:
            text = (
                "PREFIX_REDIS_URL must begin with redis://, rediss:// or unix://, and its numbers be numbers"
            )
            raise StoreError(text) from None
        self._client = redis.Redis(connection_pool=self.pool)
        self._breaker = Breaker(_PAUSE_S, _LONGEST_PAUSE_S)

    def key(self, *parts: str) -> str:
        """A key or channel of this installation."""
        return ":".join((self._prefix, *parts))

    def ask(self, act: Callable[[redis.Redis], T], otherwise: T) -> T:
        """What `act` brings; `otherwise` at once while the server is away, and after `ANSWER_S` when it has just gone."""
        was_shut = self._breaker.shut
        try:
            with self._breaker.asking(*FAILURES):
                answer = act(self._client)
        except Shut:
            return otherwise
        except FAILURES as error:
            if not was_shut:
                log.warning("Redis does not answer (%s); going on without it", type(error).__name__)
            return otherwise
        if was_shut:
            log.warning("Redis answers again")
        return answer

    def listener(self) -> PubSub:
        """A connection of its own that hears channels; raises redis.RedisError when it is used."""
        return PubSub(self.pool)

    def close(self) -> None:
        """Close every connection."""
        self.pool.disconnect()
