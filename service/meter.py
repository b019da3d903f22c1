"""Usage on its way to the store: gathered here, written a few times a second, so that answers need not wait."""

import itertools
import secrets
import threading
from collections import defaultdict

import structlog

from prefix_store import ScopedStore
from prefix_store.failpoints import failpoint
from prefix_store.scope import Owner, Scope
from prefix_store.usage import Receipt

log = structlog.get_logger("service")

Whose = tuple[Scope, Owner | None]
Counts = list[int]  # requests, tokens of prompts, tokens of completions


class Meter:
    """Tokens and requests not yet written; at most a second of them is lost with a killed process.

    Counts whose writing failed are written again as they were, under the same receipt, since they may be there: what
    came meanwhile follows behind them.
    """

    def __init__(self, store: ScopedStore) -> None:
        self._store = store
        self._pending: dict[Whose, Counts] = defaultdict(lambda: [0, 0, 0])
        self._sent: dict[Whose, tuple[int, Counts]] = {}
        self._writer, self._numbers = secrets.token_hex(8), itertools.count(1)
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
            sent = [(whose, counts) for whose, (_, counts) in self._sent.items()]
            waiting = [*self._pending.items(), *sent]
            return sum(sum(counts[1:]) for (scope, _), counts in waiting if scope.tenant_id == tenant_id)

    def left(self) -> int:
        """Requests that are not written yet."""
        with self._lock:
            return sum(
                counts[0] for counts in (*self._pending.values(), *(sent for _, sent in self._sent.values()))
            )

    def flush(self) -> None:
        """Write what was gathered."""
        with self._writing:
            with self._lock:
                everybody = list(self._sent.keys() | self._pending.keys())
            for whose in everybody:
                while self._write_next(whose):
                    pass

    def _write_next(self, whose: Whose) -> bool:
        """Whether there was something and it is written."""
        with self._lock:
            if whose not in self._sent:
                counts = self._pending.pop(whose, None)
                if counts is None:
                    return False
                self._sent[whose] = (next(self._numbers), counts)
            number, (requests, prompt, completion) = self._sent[whose]
        try:
            failpoint("service.usage_taken")
            self._store.usage.record(*whose, prompt, completion, requests, Receipt(self._writer, number))
        except Exception as error:  # noqa: BLE001 - kept for the next time: the database may be away
            log.warning("usage.kept", error=type(error).__name__)
            return False
        with self._lock:
            del self._sent[whose]
        return True
