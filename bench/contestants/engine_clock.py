"""The only place where the bench looks inside the engine: a clock around the model, requests at once, shared reads off."""

import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor

from bench.contestant import Missing
from prefix_engine import Engine, loop, runner
from prefix_engine.gpt2 import Network
from prefix_engine.native.forward import PARTS, Forward
from prefix_engine.sampling import Best, Draws, Pick, RowSampler
from prefix_engine.sequence import Sequence


class ModelClock:
    """Splits the time of decode steps into the parts of the model, argmax among them, and what is beside it.

    To be made before the engine; idle but for one check a call until `start`. A step lasts from the end
    of one choice of tokens to the end of the next, so nothing between two steps is forgotten.
    """

    def __init__(self) -> None:
        self._running = False
        self._last = 0.0
        self._spent: Counter[str] = Counter()
        self._steps: list[tuple[int, float, dict[str, float]]] = []
        self._forward: Any = None
        runner.RowSampler = self._sampler
        make = loop.runner_for

        def runner_for(network: Network, *args: Any) -> runner.Runner:
            made = make(replace(network, head=self._timed("head", network.head)), *args)
            self._forward = made._forward  # noqa: SLF001
            made._forward = self._timed("model", self._forward)  # noqa: SLF001
            made._forward.wipe = self._forward.wipe  # noqa: SLF001
            return made

        loop.runner_for = runner_for

    def start(self) -> None:
        """Begin to keep steps.

        Raises:
            Missing: the kernels do not tell how long the parts of the model took.
        """
        if not isinstance(self._forward, Forward):
            raise Missing("not built: only the compiled kernels tell where their time goes")
        self._steps.clear()
        self._running = True

    def stop(self) -> dict[str, float]:
        """Medians over the steps that had as many rows as the step before, but for the first and the last.

        Of the whole step, of what is beside the model, and of each part of the model.
        """
        self._running = False
        most = max(rows for rows, _, _ in self._steps)
        full = [_split(wall, spent) for rows, wall, spent in self._steps[1:-1] if rows == most][1:]
        return {part: statistics.median(step[part] for step in full) for part in full[0]}

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            if not self._running:
                return function(*args, **more)
            start = time.perf_counter()
            answer = function(*args, **more)
            self._spent[part] += time.perf_counter() - start
            return answer

        return timed

    def _sampler(self, best: Best, draws: Draws) -> RowSampler:
        """The engine's own sampler with its own kernels, whose argmax is timed as part of the model."""
        return _ClockedSampler(self._timed("argmax", best), draws, self._step)

    def _step(self, rows: int) -> None:
        now = time.perf_counter()
        if self._running:
            parts = {part: spent / 1e9 for part, spent in zip(PARTS, self._forward.spent, strict=True)}
            self._steps.append((rows, now - self._last, dict(self._spent) | parts))
        self._spent.clear()
        self._last = now


def _split(wall: float, spent: dict[str, float]) -> dict[str, float]:
    """Seconds of one step by part; "rest" are the embeddings and the call of the model."""
    parts = {part: spent[part] for part in ("products", "attention", "norms", "head", "argmax")}
    rest = spent["model"] - sum(spent[part] for part in ("products", "attention", "norms"))
    return {"step": wall, **parts, "rest": rest, "beside": wall - rest - sum(parts.values())}


class _ClockedSampler(RowSampler):
    """Tells when a step's tokens are chosen."""

    __slots__ = ("_ended",)

    def __init__(self, best: Best, draws: Draws, ended: Callable[[int], None]) -> None:
        super().__init__(best, draws)
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
    """Let every row read its prefix for itself, as if nobody else had it; without compiled kernels that is so anyway."""
    from prefix_engine.native import attention  # noqa: PLC0415 - only where it is asked for

    def alone(
        rows: tuple[Sequence, ...], key: Callable[[Sequence], Any]
    ) -> Iterator[tuple[Any, list[Sequence]]]:
        return ((key(row), [row]) for row in rows)

    attention.groupby = alone
