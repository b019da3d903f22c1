"""The only place where the bench looks inside the engine: a clock around the model, requests at once, shared reads off."""

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.contestant import Missing
from prefix_engine import Engine, loop, runner
from prefix_engine.sampling import Best, Pick, RowSampler
from prefix_engine.sequence import Sequence


class ModelClock:
    """Splits the time of decode steps into the model with argmax and what is beside it.

    To be made before the engine; idle but for one check a step until `start`. A step lasts from the end
    of one choice of tokens to the end of the next, so nothing between two steps is forgotten.
    """

    def __init__(self) -> None:
        self._running = False
        self._model = self._last = 0.0
        self._steps: list[tuple[int, float, float]] = []
        runner.RowSampler = self._sampler
        runner.hidden_states = self._timed(runner.hidden_states)
        make = loop.network_of

        def network_of(*args: Any) -> Any:
            network = make(*args)
            return replace(network, head=self._timed(network.head))

        loop.network_of = network_of

    def start(self) -> None:
        """Begin to keep steps."""
        self._steps.clear()
        self._running = True

    def stop(self) -> dict[str, float]:
        """Medians over the steps that had as many rows as the step before, but for the first and the last."""
        self._running = False
        most = max(rows for rows, _, _ in self._steps)
        full = [step for step in self._steps[1:-1] if step[0] == most][1:]
        return {
            "step": statistics.median(wall for _, wall, _ in full),
            "beside": statistics.median(wall - model for _, wall, model in full),
        }

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            start = time.perf_counter()
            answer = function(*args, **more)
            self._model += time.perf_counter() - start
            return answer

        return timed

    def _sampler(self, best: Best) -> RowSampler:
        """The engine's own sampler with the argmax of its own kernels, which is timed as part of the model."""
        return _ClockedSampler(self._timed(best), self._step)

    def _step(self, rows: int) -> None:
        now = time.perf_counter()
        if self._running:
            self._steps.append((rows, now - self._last, self._model))
        self._model, self._last = 0.0, now


class _ClockedSampler(RowSampler):
    """Tells when a step's tokens are chosen."""

    __slots__ = ("_ended",)

    def __init__(self, best: Best, ended: Callable[[int], None]) -> None:
        super().__init__(best)
        self._ended = ended

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """See `RowSampler`."""
        picks = super().pick(logits, sequences)
        self._ended(len(sequences))
        return picks


@contextmanager
def at_once(engine: Engine) -> Iterator[None]:
    """Have the engine see all requests that are submitted in the block in one step, however busy the machine is."""
    gate = threading.Event()
    engine._post(gate.wait)  # noqa: SLF001 - done by the loop's thread, which then takes in what was posted behind it
    try:
        yield
    finally:
        gate.set()


def read_apart() -> None:
    """Let every row read its prefix for itself, as if nobody else had it.

    Raises:
        Missing: the kernels do not group rows by their prefix.
    """
    try:
        from prefix_engine.native import attention  # noqa: PLC0415 - only where it is asked for
    except ImportError as error:
        raise Missing("not built: no shared reads") from error

    def alone(
        rows: tuple[Sequence, ...], key: Callable[[Sequence], Any]
    ) -> Iterator[tuple[Any, list[Sequence]]]:
        return ((key(row), [row]) for row in rows)

    attention.groupby = alone
