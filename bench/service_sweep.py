"""The service under load: saturated against the bare engine, then Poisson arrivals at many loads."""

import itertools
import math
import os
import statistics
from collections import Counter
from functools import partial
from typing import Any

from bench.service_child import Child, Neighbour
from bench.service_engine import bare_engine, between, said
from bench.service_run import M, ServiceRun, capacity, p95, require_all
from bench.service_site import Running, own_cpu_seconds
from bench.table import Row
from service.cli import bench_load
from service.cli.bench_load import Ask, Outcome
from service.cli.bench_report import percentile, spread

PROMISED = 0.7  # the load of which the time to the first token is promised
_TAKEN = ("service", "engine", "client_cores", "service_cores", "neighbour_cores")
_SETTLE = 0.15  # of a load's time before tokens are counted


def saturated(run: ServiceRun, service: Running) -> tuple[list[Row], dict[str, Any]]:
    """The same requests, as many under way, through HTTP and by the bare engine, in turn."""
    sizes = run.sizes
    every: dict[str, list[float]] = {name: [] for name in _TAKEN}
    lengths = list(range(*sizes.prompt, max(1, sizes.prompt[1] // 8)))
    capacities: list[float] = []
    count = sizes.under_way  # of the first turn, which warms up and tells how many fill the others
    with bare_engine(run.base_model, M) as engine:
        for turn in range(sizes.rounds + 1):
            asks = list(itertools.islice(run.asks(seed=turn), count))
            both = partial(_round, run, service, engine, asks)
            found = run.referee.undisturbed(both) if turn else both()
            run.say(f"  turn {turn or 'warm-up'}: {', '.join(f'{k} {v:.2f}' for k, v in found.items())}")
            answered = max(found.pop("capacity"), 1e-3)  # a busy machine may have answered nothing
            capacities += [answered] if turn else []
            count = max(sizes.under_way, int(answered * sizes.saturated_s))
            for name, value in found.items() if turn else ():
                every[name].append(value)
        prefills = run.referee.undisturbed(lambda: engine.ask("prefills", lengths, 3))
    run.capacity = statistics.median(capacities)
    ratios = [a / b for a, b in zip(every["service"], every["engine"], strict=True)]
    row = Row(
        "W3 saturated: service over HTTP against the bare engine",
        f"{statistics.median(every['service']):.0f} tokens/s, {min(ratios):.2f}..{max(ratios):.2f} by round",
        f"{statistics.median(every['engine']):.0f} tokens/s of the engine beside a process as busy as the "
        f"load generator ({statistics.median(every['neighbour_cores']):.2f}, it took "
        f"{statistics.median(every['client_cores']):.2f} of {len(os.sched_getaffinity(0))} cores, "
        f"the service {statistics.median(every['service_cores']):.2f})",
        100 * statistics.median(ratios),
        at_least=90,
        unit="%",
    )
    return [row], every | {"capacity": run.capacity, "prefills": prefills}


def _round(run: ServiceRun, service: Running, engine: Child, asks: list[Ask]) -> dict[str, float]:
    """The service, then the engine beside somebody who is as busy as the load generator was."""
    found = _turn(run, service, asks)
    with Neighbour(found["client_cores"]) as neighbour:
        bare = engine.ask("run", said(asks), run.sizes.under_way)
        found["neighbour_cores"] = neighbour.cores()
    return found | {"engine": bare["tokens"] / bare["seconds"]}


def _turn(run: ServiceRun, service: Running, asks: list[Ask]) -> dict[str, float]:
    """Tokens and requests a second of the saturated service, and the processor time that both sides took."""
    own, theirs = own_cpu_seconds(), service.cpu_seconds()
    outcomes, seconds = bench_load.run(service.url, iter(asks), concurrency=run.sizes.under_way)
    require_all(outcomes)
    return {
        "service": sum(outcome.tokens for outcome in outcomes) / seconds,
        "client_cores": (own_cpu_seconds() - own) / seconds,
        "service_cores": (service.cpu_seconds() - theirs) / seconds,
        "capacity": capacity(outcomes, seconds),
    }


def sweep(run: ServiceRun, service: Running, prefills: dict[int, float]) -> tuple[list[Row], dict[str, Any]]:
    """Loads from far below capacity to far above it."""
    points = []
    rows: list[Row] = []
    for number, load in enumerate(run.sizes.loads):
        seconds = run.sizes.long_load_s if load == PROMISED else run.sizes.load_s
        asks = run.asks(seed=50 + number, rate=load * run.capacity)
        loaded = partial(bench_load.run, service.url, asks, seconds=seconds)
        outcomes, took = run.referee.watched(loaded)
        point = _point(load, outcomes, seconds) | {"took": took}
        points.append(point)
        run.say("  " + _shown(point))
        rows.append(_told(point))
        if load == PROMISED:
            rows.append(_promised(outcomes, prefills, run.sizes.prompt[1] // 2))
    return rows, {"capacity": run.capacity, "points": points}


def _point(load: float, outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """One load; goodput counts tokens that came while it lasted, of answers that came whole."""
    good = [outcome for outcome in outcomes if outcome.error is None]
    begin = _SETTLE * seconds
    came = sum(begin <= o.began + piece <= seconds for o in good for piece in o.pieces[:-1])
    return {
        "load": load,
        "requests": len(outcomes),
        "answered": len(good),
        "goodput": came / (seconds - begin),
        "errors": dict(Counter(outcome.error for outcome in outcomes if outcome.error is not None)),
        "first_token": spread([outcome.first for outcome in good]),
        "between_tokens": spread([gap for outcome in good for gap in outcome.gaps]),
        "sent_late": spread([outcome.lag for outcome in outcomes]),
    }


def _promised(outcomes: list[Outcome], prefills: dict[int, float], least: int) -> Row:
    """Of the longer prompts, from `least` tokens on."""
    what = f"p95 time to first token at {PROMISED} load, prompts of {least} tokens and more"
    asked = [o for o in outcomes if len(o.ask.prompt) >= least]
    long = [o for o in asked if o.error is None]
    if not long:
        nothing = math.inf if asked else None
        return Row(what, "-", f"none of {len(asked)} such requests was answered", nothing, at_most=4)
    ratios = [o.first / between(prefills, len(o.ask.prompt)) for o in long]
    worst = p95(ratios, len(asked) - len(long))
    return Row(
        what,
        f"p50 {statistics.median(ratios):.1f}, p95 {worst:.1f} prefills, a refusal taken as endless; "
        f"{percentile([o.first for o in long], 95) * 1000:.0f} ms, {len(long)} of {len(asked)} requests answered",
        f"one prefill of that length alone on the bare engine, {between(prefills, 300) * 1000:.0f} ms at 300 tokens",
        worst,
        at_most=4,
    )


def _told(point: dict[str, Any]) -> Row:
    """One load as a row."""
    return Row(
        f"W3 at {point['load']:g} times the capacity",
        f"{point['answered']} of {point['requests']} answered, {_refused(point, '429')} refused with 429, "
        f"{_refused(point, '503')} with 503, {_refused(point, '')} not answered in all",
        f"p50 / p95 / p99: first token {_cells(point['first_token'])} ms, between tokens "
        f"{_cells(point['between_tokens'])} ms",
        point["goodput"],
        unit=" tokens/s",
    )


def _refused(point: dict[str, Any], status: str) -> int:
    return sum(count for code, count in point["errors"].items() if code.startswith(status))


def _shown(point: dict[str, Any]) -> str:
    first, gap = point["first_token"], point["between_tokens"]
    times = (
        "nothing answered"
        if first is None or gap is None
        else f"first token {first['p50'] * 1000:.0f}/{first['p95'] * 1000:.0f} ms, "
        f"between tokens {gap['p50'] * 1000:.0f}/{gap['p95'] * 1000:.0f} ms (p50/p95)"
    )
    return (
        f"load {point['load']:.1f}: {point['answered']} of {point['requests']} answered, "
        f"goodput {point['goodput']:.0f} tokens/s, {times}, {point['errors'] or 'no errors'}"
    )


def table(points: list[dict[str, Any]]) -> str:
    """The sweep as a Markdown table."""
    times = "p50 / p95 / p99, ms"
    lines = [
        f"| load | requests | answered | 429 | 503 | tokens/s | first token {times} | between tokens {times} |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        refused = [_refused(point, status) for status in ("429", "503")]
        cells = (_cells(point["first_token"]), _cells(point["between_tokens"]))
        lines.append(
            f"| {point['load']:g} | {point['requests']} | {point['answered']} | {refused[0]} | {refused[1]} | "
            f"{point['goodput']:.0f} | {cells[0]} | {cells[1]} |"
        )
    return "\n".join(lines)


def _cells(times: dict[str, float] | None) -> str:
    return "-" if times is None else " / ".join(f"{times[p] * 1000:.0f}" for p in ("p50", "p95", "p99"))
