"""Wake-ups between processes: that there is a job, that the change feed has moved. Said through Redis, after the commit.

A message holds nothing and may be lost; who listens looks into the database anyway, every now and then.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

import redis

from prefix_store.db import CHANGES, JOBS
from prefix_store.failpoints import failpoint
from prefix_store.redis_link import FAILURES, RedisLink

log = logging.getLogger(__name__)

TOPICS: Final = (JOBS, CHANGES)
_LISTEN_S = 5.0
_AGAIN_S = 1.0
_END_S = 2.0


class Wakes:
    """Tells and hears; without Redis neither, and everybody polls."""

    def __init__(self, link: RedisLink | None) -> None:
        self._link = link
        self._acts: dict[str, list[Callable[[], None]]] = {topic: [] for topic in TOPICS}
        self._own = secrets.token_hex(8)  # a channel by which this process wakes its own thread
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @property
    def heard(self) -> bool:
        """Whether a wake-up can come at all."""
        return self._link is not None

    def tell(self, topics: Iterable[str]) -> None:
        """Wake whoever listens, in every process; call it when the transaction has committed."""
        link = self._link
        if link is None:
            return
        for topic in topics:
            channel = self._channel(topic)
            link.ask(partial(_publish, channel), None)

    def listen(self, topic: str, act: Callable[[], None]) -> None:
        """Have `act` called at every wake-up, on a thread of ours, and once when listening begins anew."""
        if self._link is None:
            return
        with self._lock:
            self._acts[topic].append(act)
            if self._thread is None:
                self._thread = threading.Thread(target=self._hear, name="wakes", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._over.set()
        if self._thread is not None:
            self.tell([self._own])
            self._thread.join(_END_S)

    def _hear(self) -> None:
        while not self._over.is_set():
            try:
                self._hear_until_it_fails()
            except FAILURES as error:
                log.info("wake-ups are not heard (%s)", type(error).__name__)
                self._over.wait(_AGAIN_S)

    def _hear_until_it_fails(self) -> None:
        if self._link is None:
            return
        with self._link.listener() as channels:
            channels.subscribe(*(self._channel(topic) for topic in (*TOPICS, self._own)))
            names = {self._channel(topic).encode(): topic for topic in TOPICS}
            while not self._over.is_set():
                message = channels.get_message(timeout=_LISTEN_S)
                # Also when the server says that it listens: something may have been said until then.
                if message is not None and message["channel"] in names:
                    self._wake(names[message["channel"]])

    def _wake(self, topic: str) -> None:
        with self._lock:
            acts = list(self._acts[topic])
        for act in acts:
            act()

    def _channel(self, topic: str) -> str:
        return "" if self._link is None else self._link.key("wake", topic)


def _publish(channel: str, server: redis.Redis) -> None:
    failpoint("redis.before_wake")
    server.publish(channel, b"")
