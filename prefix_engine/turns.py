"""Which thread takes an engine's steps, and whether one is under way."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager


class Turns:
    """One step at a time, whoever takes it."""

    def __init__(self) -> None:
        # Who is inside may come again: a sink may close the engine that calls it.
        self._lock = threading.RLock()
        self._thread: int | None = None
        self._inside = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Be the one who takes steps.

        Raises:
            RuntimeError: a sink asked, which is called inside a step.
        """
        # What a sink would wait for, it keeps from happening.
        if self._inside and self.are_mine():
            raise RuntimeError("not to be called from a sink")
        with self._lock:
            self._thread, self._inside = threading.get_ident(), True
            try:
                yield
            finally:
                self._inside = False

    def pause(self) -> AbstractContextManager[object]:
        """No step begins while this is held, and none of another thread's is under way."""
        return self._lock

    def are_mine(self) -> bool:
        """Whether it was the calling thread that took the last step."""
        return self._thread == threading.get_ident()
