"""Cold prefixes, whose bytes lie on the disk: what the first use costs, and what many of them cost others.

The pool is full, as that of a service which has run for a while: each cold prefix takes the place of another. In a new
one a prefix meets memory that the machine never touched, which on a virtual one may cost more than the load.
"""

import asyncio
import itertools
import json
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.service_run import LIGHT, M, ServiceRun, require_all
from bench.service_site import Running
from bench.table import Row
from prefix_engine import EngineConfig
from prefix_engine.checkpoint import folder_of
from service.cli import bench_load
from service.cli.bench_load import Ask, Outcome
from service.cli.bench_report import percentile

_PROMPT = 64
_STREAMS = 8
_CROWDS = 3
_LONGEST = 950  # tokens of the streams: they run until they are cancelled
_SPARE = 6  # prefixes of the pool beside those of a crowd and the streams
_LEAST_POOL = 1 << 20  # that may be set


def cold(run: ServiceRun) -> tuple[list[Row], dict[str, Any]]:
    """All of it on one service, whose pool has room for a crowd and the streams beside it."""
    size = run.sizes.crowd
    names = [(tenant.key, name) for tenant in run.crowd for name in tenant.prefixes]
    first, others = names[: run.sizes.cold], names[run.sizes.cold :]
    crowds = [others[i * size : (i + 1) * size] for i in range(_CROWDS)]
    resident = (others[_CROWDS * size :] + first)[:size]
    with Running(run.folder, run.base_model, pool_bytes=_pool_bytes(run)) as service:
        _load(service, crowds[1] + crowds[2])  # the pool is full; by their turn these are no longer in it
        _forget_pages(run.folder)
        rows, raw = _first_use(run, service, first)
        _load(service, resident)
        more, beside = _beside(run, service, resident, crowds)
    return rows + more, raw | beside


def _pool_bytes(run: ServiceRun) -> str:
    config = json.loads((folder_of(run.base_model) / "config.json").read_text())
    page = EngineConfig().page * config["n_layer"] * 2 * config["n_embd"] * 4
    return str(max(_LEAST_POOL, (run.sizes.crowd + _STREAMS + _SPARE) * page))


def _load(service: Running, names: Sequence[tuple[str, str]]) -> None:
    asks = (_ask(key, name, 3, 1, 1) for key, name in names)
    require_all(bench_load.run(service.url, asks, concurrency=1)[0])


def _first_use(
    run: ServiceRun, service: Running, names: Sequence[tuple[str, str]]
) -> tuple[list[Row], dict[str, Any]]:
    """Each prefix twice, with other prompts of the same length; nothing else runs."""
    warm = run.tenants[-1]
    asks = [_ask(warm.key, warm.prefixes[0], i, _PROMPT, 1) for i in range(5)]
    for i, (key, name) in enumerate(names):
        asks += [_ask(key, name, 2 * i + turn, _PROMPT, 1) for turn in (0, 1)]
    outcomes, _ = run.referee.watched(lambda: bench_load.run(service.url, iter(asks), concurrency=1))
    require_all(outcomes)
    times = [1000 * outcome.first for outcome in outcomes[5:]]
    added = [cold_ms - warm_ms for cold_ms, warm_ms in zip(times[::2], times[1::2], strict=True)]
    row = Row(
        f"cold prefix (m={M}, bytes on disk): added to the time to first token",
        f"median of {len(added)} prefixes; p90 {percentile(added, 90):.1f} ms",
        f"{statistics.median(times[1::2]):.1f} ms, the same prefix once more, a prompt of {_PROMPT}",
        statistics.median(added),
        at_most=5,
        unit=" ms",
    )
    return [row], {"cold_ms": times[::2], "warm_ms": times[1::2]}


def _beside(
    run: ServiceRun,
    service: Running,
    resident: Sequence[tuple[str, str]],
    crowds: Sequence[Sequence[tuple[str, str]]],
) -> tuple[list[Row], dict[str, Any]]:
    """Streams that run while a crowd of cold prefixes is asked for, and as many resident ones before and behind it.

    The streams' texts grow, and their steps with them: what is before and behind the cold crowd is as far from it.
    """
    gaps: dict[str, list[float]] = {"quiet": [], "before": [], "cold": [], "behind": []}
    for number, crowd in enumerate(crowds):
        crowded = partial(_crowded, run, service.url, (resident, crowd, crowd), number)
        streams, windows = run.referee.watched(lambda crowded=crowded: asyncio.run(crowded()))
        for name, (start, stop) in windows.items():
            found = _gaps_within(streams, start, stop)
            gaps[name].append(statistics.fmean(found))
            run.say(
                f"  crowd {number + 1} {name}: {statistics.fmean(found) * 1000:.1f} ms between others' tokens "
                f"over {stop - start:.2f} s"
            )
        resident = crowd
    warm = [statistics.fmean(pair) for pair in zip(gaps["before"], gaps["behind"], strict=True)]
    ratio = statistics.median(a / b for a, b in zip(gaps["cold"], warm, strict=True))
    row = Row(
        f"others' time between tokens while {run.sizes.crowd} cold prefixes load",
        f"{statistics.median(gaps['cold']) * 1000:.1f} ms, {_STREAMS} streams",
        f"{statistics.median(warm) * 1000:.1f} ms over as long a time while as many requests come for resident "
        f"prefixes, before and behind it ({statistics.median(gaps['quiet']) * 1000:.1f} ms while none comes); "
        f"{len(crowds)} crowds",
        ratio,
        at_most=1.1,
    )
    return [row], {"others_gap_s": gaps}


async def _crowded(
    run: ServiceRun, url: str, crowds: Sequence[Sequence[tuple[str, str]]], number: int
) -> tuple[list[Outcome], dict[str, tuple[float, float]]]:
    """Outcomes of the streams, and the windows on their clock: "quiet", then one from each crowd's first request on.

    Windows of crowds are as long as the longest crowd takes, so that a short one is not a few long steps alone.
    """
    warm = run.tenants[-LIGHT - 1 : -1][:_STREAMS]
    asks = (  # one that ends is followed by another
        _ask(tenant.key, tenant.prefixes[0], i, 20, _LONGEST)
        for i, tenant in enumerate(itertools.cycle(warm))
    )
    outcomes: list[Outcome] = []
    began = time.perf_counter()
    streams = asyncio.create_task(bench_load.load(url, asks, concurrency=_STREAMS, begun=outcomes.append))
    while not _decode(outcomes):  # noqa: ASYNC110 - pieces come without an event
        await asyncio.sleep(0.05)
    starts, took = [time.perf_counter() - began], []
    await asyncio.sleep(run.sizes.window_s)
    for turn, crowd in enumerate(crowds):
        starts.append(time.perf_counter() - began)
        short = (_ask(key, prefix, 7 * number + turn, 1, 1) for key, prefix in crowd)
        require_all(await bench_load.load(url, short))
        took.append(time.perf_counter() - began - starts[-1])
        await asyncio.sleep(2 * run.sizes.window_s)
    ends = [*starts[1:], time.perf_counter() - began]
    streams.cancel()
    await asyncio.gather(streams, return_exceptions=True)
    length = min(max(took), *(end - start for start, end in zip(starts[1:], ends[1:], strict=True)))
    named = zip(("before", "cold", "behind"), starts[1:], strict=True)
    windows = {name: (start, start + length) for name, start in named}
    return outcomes, {"quiet": (starts[0], ends[0])} | windows


def _decode(outcomes: Sequence[Outcome]) -> bool:
    """Whether all streams are past their prompts."""
    return len(outcomes) >= _STREAMS and all(len(outcome.pieces) > 2 for outcome in outcomes[:_STREAMS])


def _gaps_within(outcomes: Sequence[Outcome], start: float, stop: float) -> list[float]:
    found = [
        after - before
        for outcome in outcomes
        for before, after in itertools.pairwise(outcome.began + piece for piece in outcome.pieces)
        if after >= start and before <= stop
    ]
    if not found:
        raise RuntimeError("the streams had ended before the crowd came")
    return found


def _ask(key: str, name: str, seed: int, prompt: int, output: int) -> Ask:
    ids = tuple((seed * 37 + place * 11) % 251 for place in range(prompt))
    return Ask(name, ids, output, None, key)


def _forget_pages(folder: Path) -> None:
    """Have the system drop the files of all versions from its memory, so that they are read from the disk."""
    os.sync()
    for path in (folder / "data" / "blobs").rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)
