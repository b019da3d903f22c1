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
from prefix_engine.gpt2 import Block, Network
from prefix_engine.sampling import Best, Pick, RowSampler
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
        runner.RowSampler = self._sampler
        hidden, make = runner.hidden_states, loop.network_of

        def hidden_states(network: Any, tokens: Any, positions: Any, attend: Any, wanted: Any) -> Tensor:
            return hidden(network, tokens, positions, self._timed("attention", attend), wanted)

        def network_of(*args: Any) -> Any:
            return self._clocked(make(*args))

        runner.hidden_states = self._timed("model", hidden_states)
        loop.network_of = network_of

    def start(self) -> None:
        """Begin to keep steps."""
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

    def _clocked(self, network: Network) -> Network:
        linears, norms = ("qkv", "attention_out", "mlp_in", "mlp_out"), ("ln_1", "ln_2")
        names = dict.fromkeys(linears, "products") | dict.fromkeys(norms, "norms")

        def clocked(block: Block) -> Block:
            return replace(
                block, **{name: self._timed(part, getattr(block, name)) for name, part in names.items()}
            )

        return replace(
            network,
            blocks=tuple(map(clocked, network.blocks)),
            ln_f=self._timed("norms", network.ln_f),
            head=self._timed("head", network.head),
        )

    def _timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **more: Any) -> Any:
            if not self._running:
                return function(*args, **more)
            start = time.perf_counter()
            answer = function(*args, **more)
            self._spent[part] += time.perf_counter() - start
            return answer

        return timed

    def _sampler(self, best: Best) -> RowSampler:
        """The engine's own sampler with the argmax of its own kernels, which is timed as part of the model."""
        return _ClockedSampler(self._timed("argmax", best), self._step)

    def _step(self, rows: int) -> None:
        now = time.perf_counter()
        if self._running:
            self._steps.append((rows, now - self._last, dict(self._spent)))
        self._spent.clear()
        self._last = now


def _split(wall: float, spent: dict[str, float]) -> dict[str, float]:
    """Seconds of one step by part; "rest" are embeddings, residual views and calls within the model."""
    parts = {part: spent[part] for part in ("products", "attention", "norms", "head", "argmax")}
    rest = spent["model"] - sum(spent[part] for part in ("products", "attention", "norms"))
    return {"step": wall, **parts, "rest": rest, "beside": wall - rest - sum(parts.values())}


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
