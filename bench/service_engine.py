"""The bare engine in a process of its own, fed with the asks of a load; and a neighbour that is as busy.

What the service is held against: the same requests, as many under way, no HTTP, no store, prefixes made
in memory. The neighbour uses as much processor time as the load generator did, in slices of milliseconds.
"""

import multiprocessing
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, Self

from service.cli.bench_load import Ask

_CONTEXT = multiprocessing.get_context("spawn")
_SLICE_S = 0.005


class BareEngine:
    """The parent's side."""

    def __init__(self, base_model: str, m: int) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=_engine, args=(theirs, base_model, m), daemon=True)
        self._process.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def run(self, asks: Sequence[Ask], concurrency: int) -> dict[str, Any]:
        """Seconds and tokens of these asks, `concurrency` of them under way."""
        return self._ask("run", [(a.model, a.prompt, a.output) for a in asks], concurrency)

    def prefills(self, lengths: Sequence[int], times: int) -> dict[int, float]:
        """Median seconds to the first token of prompts of these lengths, each alone."""
        return self._ask("prefills", list(lengths), times)

    def _ask(self, *order: Any) -> Any:
        self._pipe.send(order)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


class Neighbour:
    """A process that uses `share` of one core while the block lasts."""

    def __init__(self, share: float) -> None:
        self._process = _CONTEXT.Process(target=_spin, args=(min(share, 1.0),), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        time.sleep(1.0)  # until it runs
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _spin(share: float) -> None:
    while True:
        start = time.perf_counter()
        while time.perf_counter() - start < _SLICE_S * share:
            pass
        time.sleep(_SLICE_S * (1 - share))


def _engine(pipe: Connection, base_model: str, m: int) -> None:
    from prefix_engine import Engine, load_base  # noqa: PLC0415 - in the child alone
    from prefix_engine.testing import random_prefix  # noqa: PLC0415
    from service.settings import ServiceSettings  # noqa: PLC0415

    base = load_base(base_model, "cpu")
    settings = ServiceSettings()
    engine = Engine(
        base, settings.engine_config(), lambda name: random_prefix(base, m, offset=0, seed=hash(name))
    )
    engine.start()
    orders = {"run": _run, "prefills": _prefills}
    while True:
        try:
            what, *arguments = pipe.recv()
        except EOFError:
            break
        try:
            pipe.send(orders[what](engine, base, *arguments))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
    engine.close()


def _run(
    engine: Any, base: Any, asks: list[tuple[str, tuple[int, ...], int]], concurrency: int
) -> dict[str, Any]:
    from prefix_engine import Delta, Failed, Request  # noqa: PLC0415

    room, lock = threading.Semaphore(concurrency), threading.Lock()
    tokens, failed, left = 0, 0, len(asks)
    done = threading.Event()

    def sink(event: Any) -> None:
        nonlocal tokens, failed, left
        if isinstance(event, Delta):
            return
        with lock:
            failed += isinstance(event, Failed)
            tokens += getattr(event, "completion_tokens", 0)
            left -= 1
            if not left:
                done.set()
        room.release()

    start = time.perf_counter()
    for model, prompt, output in asks:
        room.acquire()
        prefix_id = None if model == base.name else model
        engine.submit(Request(prompt, output, base.config.end_id, prefix_id=prefix_id), sink)
    done.wait()
    return {"seconds": time.perf_counter() - start, "tokens": tokens, "failed": failed}


def _prefills(engine: Any, base: Any, lengths: list[int], times: int) -> dict[int, float]:
    from statistics import median  # noqa: PLC0415

    found: dict[int, list[float]] = {length: [] for length in lengths}
    for turn in range(times + 1):
        for length in lengths:
            prompt = tuple((turn + place) % 251 for place in range(length))
            seconds = _run(engine, base, [("warm", prompt, 1)], 1)["seconds"]
            if turn:
                found[length].append(seconds)
    return {length: median(values) for length, values in found.items()}


def between(known: dict[int, float], length: int) -> float:
    """Seconds of a prefill of any length, by a straight line between the two measured beside it."""
    lengths: Iterator[int] = iter(sorted(known))
    below = above = next(lengths)
    for above in lengths:
        if above >= length:
            break
        below = above
    if above == below:
        return known[below] * length / below
    return known[below] + (known[above] - known[below]) * (length - below) / (above - below)
