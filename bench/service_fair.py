"""Fair share: what light tenants get while a heavy one keeps many streams, against when it behaves as they do."""

import asyncio
import heapq
import itertools
import math
from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.service_run import LIGHT, PATIENT_S, ServiceRun, capacity, p95
from bench.service_site import Running
from bench.table import Row
from service.cli import bench_load
from service.cli.bench_load import Ask, Outcome

LOAD = 0.5  # of the capacity: what the light tenants and one more of their kind ask for together
_RAMP_S = 4.0  # for the heavy tenant to fill the batch


def fair(run: ServiceRun) -> tuple[list[Row], dict[str, Any]]:
    """The same requests of the light tenants with the heavy one held and let loose, in turn."""
    outcomes: dict[str, list[Outcome]] = {"held": [], "loose": []}
    refusals: list[int] = []
    with Running(run.folder, run.base_model, deadline_seconds=PATIENT_S) as service:
        full = run.capacity or _capacity(run, service)
        rate = LOAD * full / (LIGHT + 1)
        for turn in range(run.sizes.fair_rounds):
            for name, found in list(outcomes.items())[:: -1 if turn % 2 else 1]:
                found.extend(
                    run.referee.watched(partial(_measured, run, service, rate, turn, refusals, name))
                )
                run.say(
                    f"  turn {turn + 1}, heavy tenant {name}: {len(found)} answers to light tenants so far"
                )
        alone = run.referee.watched(partial(_alone, run, service))
    got = {name: _got(found) for name, found in outcomes.items()} | {"solo": _got(alone)}
    raw = {"capacity": full, "load": LOAD, "rate_of_a_light_tenant": rate, "heavy_refused": refusals, **got}
    rows = [
        _row(run, got, "first_token", "time to first token"),
        _row(run, got, "per_token", "time per token"),
    ]
    return rows, raw


def _row(run: ServiceRun, got: dict[str, Any], name: str, title: str) -> Row:
    loose, held, solo = (got[who][name] for who in ("loose", "held", "solo"))
    asked = got["loose"]["answers"] + got["loose"]["errors"]
    return Row(
        f"fair share: light tenants' p95 {title} beside {run.sizes.heavy} streams of one tenant",
        f"{loose * 1000:.0f} ms; {loose / solo:.1f}x a tenant alone ({solo * 1000:.0f} ms)",
        f"{held * 1000:.0f} ms with the heavy tenant at a light one's load; {LIGHT} light tenants, "
        f"together {LOAD * LIGHT / (LIGHT + 1):.2f} of capacity, {got['loose']['answers']} of {asked} requests answered",
        loose / held if math.isfinite(held) else None,
        at_most=2,
    )


def _measured(
    run: ServiceRun, service: Running, rate: float, turn: int, refusals: list[int], name: str
) -> list[Outcome]:
    return asyncio.run(_turn(run, service.url, rate, turn, refusals, loose=name == "loose"))


async def _turn(
    run: ServiceRun, url: str, rate: float, turn: int, refusals: list[int], *, loose: bool
) -> list[Outcome]:
    """Outcomes of the light tenants; how often the heavy one was refused is added to `refusals`."""
    light, heavy = run.tenants[-LIGHT - 1 : -1], run.tenants[-1]
    streams = [run.stream(tenant, rate, seed=1000 * turn + i) for i, tenant in enumerate(light)]
    if not loose:
        streams.append(run.stream(heavy, rate, seed=1000 * turn + 900))
    asks: Iterator[Ask] = heapq.merge(*streams, key=lambda ask: ask.due or 0.0)
    flood = None
    if loose:
        endless = run.stream(heavy, None, seed=1000 * turn + 901)
        ended: list[Outcome] = []
        flood = asyncio.create_task(
            bench_load.load(url, endless, concurrency=run.sizes.heavy, told=ended.append)
        )
        await asyncio.sleep(_RAMP_S)
    outcomes = await bench_load.load(url, asks, seconds=run.sizes.fair_s)
    if flood is not None:
        if flood.done():
            raise RuntimeError("the heavy tenant's streams had ended") from flood.exception()
        refused = sum(outcome.error is not None for outcome in ended)
        refusals.append(refused)
        run.say(f"  the heavy tenant: {len(ended) - refused} answers, {refused} refusals")
        flood.cancel()
        await asyncio.gather(flood, return_exceptions=True)
    return [outcome for outcome in outcomes if outcome.ask.label != heavy.name]


def _alone(run: ServiceRun, service: Running) -> list[Outcome]:
    """One request of a light tenant at a time, nothing else."""
    asks = run.stream(run.tenants[-2], None, seed=7)
    return bench_load.run(service.url, asks, concurrency=1, seconds=run.sizes.fair_s / 2)[0]


def _capacity(run: ServiceRun, service: Running) -> float:
    """Requests a second of the saturated service."""
    asks = itertools.islice(run.asks(seed=0), 2 * run.sizes.under_way)
    return capacity(*bench_load.run(service.url, asks, concurrency=run.sizes.under_way))


def _got(outcomes: list[Outcome]) -> dict[str, Any]:
    good = [outcome for outcome in outcomes if outcome.error is None]
    return {
        "answers": len(good),
        "errors": len(outcomes) - len(good),
        "first_token": p95((outcome.first for outcome in good), len(outcomes) - len(good)),
        "per_token": p95((o.per_token for o in good if o.per_token is not None), len(outcomes) - len(good)),
    }
