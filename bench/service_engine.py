"""The bare engine in a process of its own, fed with the asks of a load.

What the service is held against: the same requests, as many under way, no HTTP, no store, prefixes made
in memory.
"""

import os
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from statistics import median
from typing import Any
from zlib import crc32

from bench.service_child import Child, serve
from service.cli.bench_load import Ask


def bare_engine(base_model: str, m: int) -> Child:
    """The engine with the service's settings; orders: `run` (see `said`) and `prefills`."""
    return Child(_engine, base_model, m)


def said(asks: Sequence[Ask]) -> list[tuple[str, tuple[int, ...], int]]:
    """Asks as `run` takes them; tenants give their prefixes the same names, the engine must not share those."""
    return [(f"{ask.label}/{ask.model}", ask.prompt, ask.output) for ask in asks]


def _engine(pipe: Connection, base_model: str, m: int) -> None:
    from prefix_engine import Delta, Engine, Failed, Request, load_base  # noqa: PLC0415 - in the child alone
    from prefix_engine.testing import random_prefix  # noqa: PLC0415
    from service.settings import ServiceSettings  # noqa: PLC0415

    base = load_base(base_model, os.environ.get("PREFIX_DEVICE", "cpu"))
    config = ServiceSettings(prompt_cache_seconds=0).engine_config()
    engine = Engine(
        base, config, lambda name: random_prefix(base, m, offset=0, seed=crc32(name.encode()), spread=0.5)
    )
    engine.start()

    def run(asks: list[tuple[str, tuple[int, ...], int]], concurrency: int) -> dict[str, Any]:
        """Seconds and tokens of these asks, `concurrency` of them under way."""
        room, done = threading.Semaphore(concurrency), threading.Event()
        ended: list[Any] = []

        def sink(event: Any) -> None:  # on the engine's thread alone
            if not isinstance(event, Delta):
                ended.append(event)
                room.release()
                if len(ended) == len(asks):
                    done.set()

        start = time.perf_counter()
        for model, prompt, output in asks:
            room.acquire()
            engine.submit(Request(prompt, output, base.config.end_id, prefix_id=model), sink)
        done.wait()
        seconds = time.perf_counter() - start
        if any(isinstance(event, Failed) for event in ended):
            raise RuntimeError("a request failed")
        return {"seconds": seconds, "tokens": sum(event.completion_tokens for event in ended)}

    def prefills(lengths: list[int], times: int) -> dict[int, float]:
        """Median seconds to the first token of prompts of these lengths, each alone."""
        found: dict[int, list[float]] = {length: [] for length in lengths}
        for turn in range(times + 1):
            for length in lengths:
                prompt = tuple((turn * 31 + place) % 251 for place in range(length))
                seconds = run([("warm", prompt, 1)], 1)["seconds"]
                found[length] += [seconds] if turn else []
        return {length: median(values) for length, values in found.items()}

    serve(pipe, {"run": run, "prefills": prefills})
    engine.close()


def between(known: dict[int, float], length: int) -> float:
    """Seconds of a prefill of any length, by a straight line between the two measured beside it."""
    below, *more = sorted(known)
    for above in more:
        if above >= length:
            return known[below] + (known[above] - known[below]) * (length - below) / (above - below)
        below = above
    return known[below] * length / below
