"""Resident prefixes: loaded beside the step loop, pinned while rows use them, evicted least recently used.

Everything here belongs to the thread of the step loop but the loader threads, which know nothing except
the loader that they call: they take an id from a queue and hand the result to `deliver`. An id means
something only to the loader.
"""

import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass

from prefix_engine.base import Base
from prefix_engine.gone import Gone
from prefix_engine.kv import PagedMemory
from prefix_engine.pages import pages_for
from prefix_engine.prefix import Prefix, PrefixError
from prefix_engine.scheduler import Readiness

log = logging.getLogger(__name__)

_READY_PAGES = 8  # free pages whose memory is there before a prefix comes

Loader = Callable[[str], Prefix]


class LoadRefused(Exception):
    """What a loader raises where its words are for the client; `code` is what the requests fail with."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class LoadError:
    """Why a prefix did not come; `code` is the one that its requests fail with."""

    code: str
    message: str


_STOPPED = LoadError("engine_stopped", "the engine has stopped")


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a loader thread hands over."""

    prefix_id: str
    outcome: Prefix | LoadError
    seconds: float
    ended: float = 0.0  # on the monotonic clock


@dataclass(slots=True)
class Resident:
    """A prefix in pages; `pins` counts the rows that read it."""

    m: int
    position_offset: int
    pages: tuple[int, ...]
    pins: int = 0


class PrefixPool:
    """The prefixes that rows can use at once, within the prefix pages of `memory`."""

    def __init__(
        self, base: Base, memory: PagedMemory, loader: Loader, threads: int, deliver: Callable[[Loaded], None]
    ) -> None:
        self._base = base
        self._memory = memory
        self._loader = loader
        self._deliver = deliver
        self._residents: OrderedDict[str, Resident] = OrderedDict()
        self._loading: set[str] = set()
        self._held: dict[str, Prefix] = {}  # loaded, waiting for pages
        self._revoked = Gone(lambda: self._loading)
        self._orders: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._most_loads = 2 * threads
        self._threads = [
            threading.Thread(target=self._serve, name=f"prefix-loader-{i}", daemon=True)
            for i in range(threads)
        ]
        self._stopped = False
        self.hits = self.misses = self.evictions = 0
        self.load_seconds = 0.0

    @property
    def loading(self) -> int:
        """Loads under way, and loaded prefixes that wait for room."""
        return len(self._loading) + len(self._held)

    @property
    def resident(self) -> int:
        """Prefixes in pages."""
        return len(self._residents)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the pages that they hold."""
        return self._memory.prefix_pages.used * self._memory.page_bytes

    def start(self) -> None:
        """Start the loader threads."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Let the loader threads end after the load that they are in, of which nothing is kept; none begins any more."""
        self._stopped = True
        for _ in self._threads:
            self._orders.put(None)

    def get(self, prefix_id: str) -> Resident | None:
        """The resident prefix of this id, if there is one."""
        return self._residents.get(prefix_id)

    def holds(self, prefix_id: str) -> bool:
        """Whether this id is resident, loaded or being loaded; may be asked from any thread."""
        # In the order of its way; it enters the next before it leaves the one before, so that no look misses it.
        return prefix_id in self._loading or prefix_id in self._held or prefix_id in self._residents

    def is_revoked(self, prefix_id: str) -> bool:
        """Whether this id is refused, see `refuse`."""
        return prefix_id in self._revoked

    def ensure(self, prefix_id: str, protected: Container[str]) -> Readiness:
        """Say whether a prefix is resident; if not, start its load, or find room for it if it came.

        COLD means that it must be asked for again, because loads enough are under way.

        Room is made by evicting the least recently used prefix that no row pins and that is not
        `protected` (wanted by a request that comes earlier).
        """
        if prefix_id in self._residents:
            self._residents.move_to_end(prefix_id)
            return Readiness.READY
        if prefix_id in self._held:
            if self._place(prefix_id, protected):
                return Readiness.READY
            if prefix_id in self._held:
                return Readiness.NO_ROOM
        if prefix_id in self._loading:
            return Readiness.LOADING
        if self.loading >= self._most_loads:
            return Readiness.COLD
        self._loading.add(prefix_id)
        self.misses += 1
        self._orders.put(prefix_id)
        return Readiness.BEGUN

    def pin(self, prefix_id: str) -> Resident:
        """Keep a resident prefix until `unpin`."""
        resident = self._residents[prefix_id]
        resident.pins += 1
        self._residents.move_to_end(prefix_id)
        self.hits += 1
        return resident

    def unpin(self, prefix_id: str) -> None:
        """Take one pin away."""
        self._residents[prefix_id].pins -= 1

    def settle(self, loaded: Loaded) -> LoadError | None:
        """Take what a loader thread brought; returns the error that its requests fail with, if any."""
        error = self._taken(loaded)
        self._loading.discard(loaded.prefix_id)
        self.load_seconds += loaded.seconds
        return error

    def drop_held(self, awaited: Container[str | None]) -> int:
        """Forget loaded prefixes without pages that nobody waits for any more; how many there were."""
        unwanted = [i for i in self._held if i not in awaited]
        for prefix_id in unwanted:
            del self._held[prefix_id]
        return len(unwanted)

    def give_way(self, asked: Container[str]) -> int:
        """Forget the last held prefix that was not asked for, if held ones alone keep a load from beginning; how many.

        For who met COLD: what is held is wanted by requests further back, and the rows that keep it out of the pool
        may run for long.
        """
        behind = [i for i in self._held if i not in asked]
        if not behind or len(self._held) < self._most_loads:
            return 0
        del self._held[behind[-1]]
        return 1

    def refuse(self, prefix_ids: Iterable[str]) -> None:
        """From now on never load these ids; in an hour's time (`Gone`) it is the loader that has none of them."""
        self._revoked.add(prefix_ids)

    def erase(self, prefix_ids: Iterable[str]) -> None:
        """Zero and free what is resident of these ids.

        Raises:
            ValueError: a row still pins one of them.
        """
        for prefix_id in prefix_ids:
            self._held.pop(prefix_id, None)
            resident = self._residents.get(prefix_id)
            if resident is None:
                continue
            if resident.pins:
                raise ValueError("a row still uses this prefix")
            del self._residents[prefix_id]
            self._memory.remove(resident.pages)

    def erase_all(self) -> None:
        """Zero and forget every prefix, at the end."""
        for resident in self._residents.values():
            self._memory.remove(resident.pages)
        self._residents.clear()
        self._held.clear()

    def is_loading(self, prefix_ids: Container[str]) -> bool:
        """Whether a load of one of these ids is under way."""
        return any(prefix_id in prefix_ids for prefix_id in self._loading)

    def _taken(self, loaded: Loaded) -> LoadError | None:
        if self._stopped:
            return _STOPPED
        if loaded.prefix_id in self._revoked:
            return LoadError("revoked", "the prefix was revoked")
        if isinstance(loaded.outcome, LoadError):
            return loaded.outcome
        if pages_for(loaded.outcome.m, self._memory.page) > self._memory.prefix_pages.total:
            return LoadError("load_failed", "the prefix is larger than the whole pool")
        self._held[loaded.prefix_id] = loaded.outcome
        return None

    def _place(self, prefix_id: str, protected: Container[str]) -> bool:
        prefix = self._held[prefix_id]
        lacking = pages_for(prefix.m, self._memory.page) - self._memory.prefix_pages.free
        victims: list[str] = []
        for other, resident in self._residents.items():
            if lacking <= 0:
                break
            if not resident.pins and other not in protected:
                victims.append(other)
                lacking -= len(resident.pages)
        if lacking > 0:
            return False
        self.erase(victims)
        self.evictions += len(victims)
        try:
            pages = self._memory.place(prefix)
        except (RuntimeError, MemoryError) as error:  # no memory on the device, for one
            self._lose(prefix_id, error)
            return False
        if pages is None:
            return False
        self._residents[prefix_id] = Resident(prefix.m, prefix.position_offset, pages)
        del self._held[prefix_id]
        return True

    def _lose(self, prefix_id: str, error: Exception) -> None:
        """Have a prefix that could not be placed come as a failed load, which ends its own requests and no others."""
        log.warning("prefix.place_failed error=%s", type(error).__name__)
        self._loading.add(prefix_id)
        del self._held[prefix_id]
        failed = LoadError("load_failed", "there was no memory for the prefix")
        self._deliver(Loaded(prefix_id, failed, 0.0, time.monotonic()))

    def _serve(self) -> None:
        self._memory.prepare(_READY_PAGES)
        while (prefix_id := self._orders.get()) is not None:
            self._deliver(self._load(prefix_id))  # in one line: a thread that waits holds no prefix
            self._memory.prepare(_READY_PAGES)

    def _load(self, prefix_id: str) -> Loaded:
        start = time.monotonic()
        # Once it was stopped an order is only answered: a revocation may wait for it.
        outcome = _STOPPED if self._stopped else self._outcome(prefix_id)
        ended = time.monotonic()
        return Loaded(prefix_id, outcome, ended - start, ended)

    def _outcome(self, prefix_id: str) -> Prefix | LoadError:
        try:
            prefix = self._loader(prefix_id)
            prefix.check(self._base)
        except BaseException as error:  # noqa: BLE001 - the thread's outermost edge; a library in Rust may panic
            if isinstance(error, LoadRefused | PrefixError):
                return LoadError(error.code, str(error))
            log.warning("prefix.load_failed error=%s", type(error).__name__)
            return LoadError("load_failed", "the prefix could not be loaded")
        return prefix
