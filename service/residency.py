"""The only place where stored bytes become resident prefixes: what the engine's loader threads call.

The engine knows versions by opaque ids; what they mean is noted here when a request resolves one.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from anyio import CapacityLimiter, to_thread

from prefix_engine import Base, LoadRefused, Prefix
from prefix_store import ScopedStore
from prefix_store.errors import Corrupt, NotFound, Unavailable
from prefix_store.version_rows import Resolved

_KEPT = 2048  # versions noted before those that are neither resident nor asked for are forgotten


class Residency:
    """Notes versions that requests name, loads them, finds those of an owner again.

    Args:
        store: where the bytes are.
        base: what they must fit.
        in_use: of some version ids those that the engine or a request still holds.
    """

    def __init__(self, store: ScopedStore, base: Base, in_use: Callable[[set[str]], set[str]]) -> None:
        self._store, self._base, self._in_use = store, base, in_use
        self._known: dict[str, Resolved] = {}
        self._reading: dict[str, Future[bytes | None]] = {}
        self._at_hand: dict[str, tuple[bytes, int]] = {}  # bytes, and how many requests need them
        self._most = _KEPT
        self._lock = threading.Lock()

    def note(self, resolved: Resolved) -> None:
        """Remember what a version id means."""
        with self._lock:
            if len(self._known) >= self._most and resolved.version_id not in self._known:
                kept = self._in_use(set(self._known))
                self._known = {i: known for i, known in self._known.items() if i in kept}
                self._most = max(
                    _KEPT, 2 * len(self._known)
                )  # or each new one would have all looked at again
            self._known[resolved.version_id] = resolved

    async def read(self, resolved: Resolved, storing: CapacityLimiter) -> bytes | None:
        """Bytes of a checkpoint, whose file may be replaced before the engine asks for it; None for a version.

        None also for a damaged file, which the engine then finds damaged too. All who ask at once share one read, on a
        `storing` thread.

        Raises:
            Unavailable: the storage is away, or who had begun to read went away.
            NotFound: it was replaced already, or its job has ended; resolve the name again.
        """
        if resolved.number is not None:
            return None
        version_id = resolved.version_id
        with self._lock:
            kept = self._at_hand.get(version_id)
            if kept is not None:
                return kept[0]
            reading, found = self._reading.get(version_id), Future[bytes | None]()
            if reading is None:
                self._reading[version_id] = found
        if reading is not None:
            return await asyncio.shield(asyncio.wrap_future(reading))
        try:
            await to_thread.run_sync(self._read, resolved, found, limiter=storing)
        finally:
            with self._lock:
                del self._reading[version_id]
            if not found.done():  # cancelled before there was a thread for it
                found.set_exception(Unavailable("the file was not read; try again"))
        return found.result()

    def _read(self, resolved: Resolved, found: Future[bytes | None]) -> None:
        try:
            found.set_result(self._store.registry.read(resolved))
        except Corrupt:
            found.set_result(None)
        except BaseException as error:  # noqa: BLE001 - for all who wait for it
            found.set_exception(error)

    @contextmanager
    def at_hand(self, resolved: Resolved | None, payload: bytes | None) -> Iterator[None]:
        """Keep a checkpoint's bytes for the engine while a request needs them; nothing to do without bytes.

        All requests share the bytes of the first; who has others is to let go of them.
        """
        if resolved is None or payload is None:
            yield
            return
        version_id = resolved.version_id
        with self._lock:
            kept, users = self._at_hand.get(version_id, (payload, 0))
            self._at_hand[version_id] = kept, users + 1
        del payload, kept
        try:
            yield
        finally:
            with self._lock:
                kept, users = self._at_hand.pop(version_id)
                if users > 1:
                    self._at_hand[version_id] = kept, users - 1

    def load(self, version_id: str) -> Prefix:
        """Bytes of a version, opened and checked; called on the engine's loader threads.

        Raises:
            LoadRefused: deleted meanwhile, damaged, or out of reach for now.
            PrefixError: bytes that are no prefix of this base.
        """
        with self._lock:
            resolved = self._known.get(version_id)
            kept = self._at_hand.get(version_id)
        if resolved is None:
            raise LoadRefused("revoked", "the version is gone")
        try:
            payload = self._store.registry.read(resolved) if kept is None else kept[0]
            return Prefix.from_bytes(payload, self._base)
        except NotFound:
            raise LoadRefused("revoked", "the version is gone") from None
        except Corrupt:
            raise LoadRefused("corrupt", "the version's file is damaged") from None
        except Unavailable as error:
            raise LoadRefused("unavailable", f"{error}; try again") from None

    def of_owner(self, tenant_id: str, owner_id: str) -> set[str]:
        """Version ids of an owner, as far as they were named here; "" means all owners of the tenant."""
        with self._lock:
            return {
                version_id
                for version_id, known in self._known.items()
                if known.owner.tenant_id == tenant_id and owner_id in {known.owner.owner_id, ""}
            }

    def of_job(self, job_id: str) -> set[str]:
        """Ids of the version and the checkpoints that a job made, as far as they were named here."""
        with self._lock:
            return {version_id for version_id, known in self._known.items() if known.job_id == job_id}

    def forget(self, version_ids: set[str]) -> None:
        """Drop what is known of versions that are gone."""
        with self._lock:
            for version_id in version_ids:
                self._known.pop(version_id, None)
