"""Held-out loss against the time that training took, without the time of the looks at that loss."""

import contextlib
import time
from collections.abc import Iterator


class Curve:
    """One run; `points` are (updates behind it, seconds, the processor's seconds, held-out loss)."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float, float, float]] = []
        self._seconds = self._processor = 0.0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """What is done meanwhile belongs to training."""
        seconds, processor = time.perf_counter(), time.process_time()
        yield
        self._seconds += time.perf_counter() - seconds
        self._processor += time.process_time() - processor

    def look(self, update: int, loss: float) -> None:
        """Note the held-out loss after so many updates."""
        self.points.append((update, self._seconds, self._processor, loss))
