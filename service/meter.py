"""Usage on its way to the store: gathered here, written a few times a second, so that answers need not wait."""

import threading
from collections import defaultdict

import structlog

from prefix_store import ScopedStore
from prefix_store.failpoints import failpoint
from prefix_store.scope import Owner, Scope

log = structlog.get_logger("service")


class Meter:
    """Tokens and requests not yet written; at most a second of them is lost with a killed process."""

    def __init__(self, store: ScopedStore) -> None:
        self._store = store
        self._pending: dict[tuple[Scope, Owner | None], list[int]] = defaultdict(lambda: [0, 0, 0])
        self._lock = threading.Lock()
        self._writing = threading.Lock()

    def add(self, scope: Scope, owner: Owner | None, prompt_tokens: int, completion_tokens: int) -> None:
        """Count one request."""
        with self._lock:
            counts = self._pending[scope, owner]
            counts[0] += 1
            counts[1] += prompt_tokens
            counts[2] += completion_tokens

    def pending(self, tenant_id: str) -> int:
        """Tokens of a tenant that are not written yet."""
        with self._lock:
            return sum(sum(n[1:]) for (scope, _), n in self._pending.items() if scope.tenant_id == tenant_id)

    def flush(self) -> None:
        """Write what was gathered."""
        with self._writing:
            with self._lock:
                taken, self._pending = self._pending, defaultdict(lambda: [0, 0, 0])
            for (scope, owner), (requests, prompt, completion) in taken.items():
                try:
                    failpoint("service.usage_taken")
                    self._store.usage.record(scope, owner, prompt, completion, requests)
                except Exception as error:  # noqa: BLE001 - kept for the next time: the database may be away
                    log.warning("usage.kept", error=type(error).__name__)
                    with self._lock:
                        counts = self._pending[scope, owner]
                        for i, count in enumerate((requests, prompt, completion)):
                            counts[i] += count
