"""Sealed prefixes in Redis, so that what one process has read from the object storage the next reads from there.

They lie there exactly as they are stored, an owner's together, for a bounded time. Nobody looks here before the database has said that the
version may be served. What is removed leaves a mark for that time, so that a reader that is late cannot put it back; a
server that evicts may lose the mark, so a reader looks again behind its put and takes back what is gone by then.
"""

import threading
import time
from typing import Any, Final

from prefix_store.crypto import Place
from prefix_store.redis_link import RedisLink

LARGEST: Final = 8 << 20
_MANY = 1000
_Ids = tuple[str, str, str | None]  # tenant, owner, object; all of the owner's objects if None

# KEYS: an owner's blobs, its mark, the object's mark. ARGV: object, bytes, seconds.
_PUT = """
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then return 0 end
local made = redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
if redis.call('TTL', KEYS[1]) < 0 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return made
"""


class BlobCache:
    """Second level behind a process's memory; without Redis every read is a miss.

    Args:
        link: the server.
        seconds: how long an owner's blobs, or the mark of a removed one, lie there at most.
    """

    def __init__(self, link: RedisLink, seconds: int) -> None:
        self._link, self._seconds = link, seconds
        # Removals that Redis has not confirmed, and when they are moot; kept as long again for whoever asks about one.
        self._owed: dict[_Ids, float] = {}
        self._lock = threading.Lock()

    def get(self, place: Place) -> bytes | None:
        """Sealed bytes, which may be anybody's forgery: they are opened and checked like a file."""
        key = self._blobs(place.tenant_id, place.owner_id)
        found: Any = self._link.ask(lambda redis: redis.hget(key, place.object_id), None)
        return bytes(found) if found else None

    def put(self, place: Place, sealed: bytes) -> None:
        """Leave a blob for other processes unless it, or its owner, was removed."""
        if len(sealed) > LARGEST:
            return
        tenant_id, owner_id, object_id = place.tenant_id, place.owner_id, place.object_id
        keys = (
            self._blobs(tenant_id, owner_id),
            self._mark(tenant_id, owner_id),
            self._mark(tenant_id, owner_id, object_id),
        )
        self._link.ask(lambda redis: redis.eval(_PUT, 3, *keys, object_id, sealed, self._seconds), None)

    def forget(self, place: Place) -> bool:
        """Remove a blob for good; whether Redis has confirmed that, or the blobs' time is over since it was first asked."""
        return self._remove((place.tenant_id, place.owner_id, place.object_id))

    def forget_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove an owner's blobs for good."""
        self._remove((tenant_id, owner_id, None))

    def settle(self) -> bool:
        """Ask again for removals that Redis has not confirmed; whether nothing is left to be removed.

        What was put before a removal is gone after the blobs' time even if Redis never answers.
        """
        left = [ids for ids in self._still_owed() if not self._remove(ids)]
        return not left

    def _remove(self, ids: _Ids) -> bool:
        done = self._link.ask(lambda redis: self._removed(redis, ids), otherwise=False)
        if not done and len(self._owed) > _MANY:
            self._still_owed()
        with self._lock:
            if done:
                self._owed.pop(ids, None)
                return True
            now = time.monotonic()
            return self._owed.setdefault(ids, now + self._seconds) <= now

    def _removed(self, redis: Any, ids: _Ids) -> bool:
        tenant_id, owner_id, object_id = ids
        key = self._blobs(tenant_id, owner_id)
        with redis.pipeline(transaction=True) as steps:
            if object_id is None:
                steps.set(self._mark(tenant_id, owner_id), b"1", ex=self._seconds).delete(key)
            else:
                steps.set(self._mark(tenant_id, owner_id, object_id), b"1", ex=self._seconds)
                steps.hdel(key, object_id)
            steps.execute()
        return True

    def _still_owed(self) -> list[_Ids]:
        with self._lock:
            now = time.monotonic()
            self._owed = {ids: until for ids, until in self._owed.items() if until + self._seconds > now}
            return [ids for ids, until in self._owed.items() if until > now]

    def _blobs(self, tenant_id: str, owner_id: str) -> str:
        return self._link.key("blobs", tenant_id, owner_id)

    def _mark(self, *ids: str) -> str:
        return self._link.key("gone", *ids)
