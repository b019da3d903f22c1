"""Training beside serving: what eight streams see of a worker that trains on the same machine, and what it gets done."""

import itertools
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from bench.service_run import PATIENT_S, ServiceRun, require_all
from bench.service_site import Running, Tenant
from bench.table import Row
from prefix_store import Store, StoreSettings, open_store
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.job_rows import Job
from prefix_store.scope import Scope
from service.cli import bench_load
from service.cli.bench_load import Outcome
from service.cli.bench_report import percentile

_STREAMS = 8
_ROWS, _CHARACTERS = 400, 60
_BATCH = 2  # rows of an update: some dozens of updates a turn
_READY_S = 300.0
_LOOK_S = 0.1
# What may be set of the worker: lets nobody by, and as it comes.
_WORKERS = {"priority alone": "1.0", "default": ""}


def beside(run: ServiceRun) -> tuple[list[Row], dict[str, Any]]:
    """Streams with a worker that has nothing to do, and with one that trains, in turn."""
    raw: dict[str, Any] = {}
    for name, share in _WORKERS.items():
        more = {"worker_share_beside_texts": share} if share else {}
        with (
            closing(open_store(StoreSettings(data_dir=run.folder))) as store,
            Running(run.folder, run.base_model, deadline_seconds=PATIENT_S, **more) as service,
        ):
            service.start_worker()
            raw[name] = _compared(run, store, service, name)
    return [_row(name, found) for name, found in raw.items()], raw


def _row(name: str, found: dict[str, Any]) -> Row:
    gaps = {who: [turn["gap"] for turn in found[who]] for who in ("without", "with")}
    ratio = statistics.median(a / b for a, b in zip(gaps["with"], gaps["without"], strict=True))
    trained = {who: _median([turn["trained"] for turn in found[who]]) for who in ("with", "alone")}
    tokens = {who: statistics.median(turn["tokens"] for turn in found[who]) for who in ("with", "without")}
    return Row(
        f"p95 time between tokens of {_STREAMS} streams with training beside them, worker: {name}",
        f"{1000 * statistics.median(gaps['with']):.0f} ms, {tokens['with']:.0f} tokens/s; training "
        f"{trained['with']}",
        f"{1000 * statistics.median(gaps['without']):.0f} ms, {tokens['without']:.0f} tokens/s without; training "
        f"{trained['alone']} without streams",
        ratio,
    )


def _compared(run: ServiceRun, store: Store, service: Running, name: str) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {"without": [], "with": [], "alone": []}
    tenant = run.tenants[0]
    for turn in range(run.sizes.beside_rounds):
        found["without"].append(_streams(run, service, turn))
        with _training(store, tenant, turn) as (scope, job):
            found["alone"].append(
                {"trained": _rate(store, scope, job, lambda: time.sleep(run.sizes.beside_s / 2))}
            )
            seen: dict[str, float] = {}
            rate = _rate(
                store, scope, job, lambda into=seen, at=turn: into.update(_streams(run, service, at))
            )
            found["with"].append(seen | {"trained": rate})
        run.say(
            f"  {name}, turn {turn + 1}: {found['without'][-1]}, {found['with'][-1]}, {found['alone'][-1]}"
        )
    return found


def _streams(run: ServiceRun, service: Running, turn: int) -> dict[str, float]:
    """Eight streams for a while; p95 of the times between their tokens, in seconds, and tokens a second of all."""
    asks = run.stream(run.tenants[0], None, seed=7000 + turn)
    outcomes, seconds = bench_load.run(service.url, asks, concurrency=_STREAMS, seconds=run.sizes.beside_s)
    require_all(outcomes)  # else its p95 would be that of who was served
    return {"gap": percentile(_gaps(outcomes), 95), "tokens": sum(one.tokens for one in outcomes) / seconds}


def _gaps(outcomes: list[Outcome]) -> list[float]:
    return list(itertools.chain.from_iterable(outcome.gaps for outcome in outcomes))


@contextmanager
def _training(store: Store, tenant: Tenant, seed: int) -> Iterator[tuple[Scope, Job]]:
    """A job that does not end, once it is under way; cancelled at the end, and its process gone."""
    scope = store.keys.verify(tenant.key)
    assert isinstance(scope, Scope)
    owner, draw = store.owners.get(scope, "user"), random.Random(seed)
    with store.datasets.writer(scope, owner, "train.jsonl") as writer:
        for number in range(_ROWS):
            text = "".join(draw.choices("abcdefgh ", k=_CHARACTERS))
            writer.write(f'{{"prompt": "{number}", "completion": "{text}"}}\n'.encode())
        dataset = writer.finish()
    wishes = Hyperparameters(max_steps=1_000_000, eval_steps=1_000_000, batch_size=_BATCH)
    job = store.jobs.create(scope, owner, f"t{seed}", [dataset.id], hyperparameters=wishes, seed=seed)
    try:
        _until(lambda: (store.jobs.get(scope, job.id).progress or {}).get("update", 0) > 1)
        yield scope, job
    finally:
        store.jobs.cancel(scope, job.id)
        _until(lambda: store.jobs.get(scope, job.id).status == "cancelled")
        time.sleep(3.0)  # a beat, after which the worker ends the process


def _until(condition: Any) -> None:
    give_up = time.monotonic() + _READY_S
    while not condition():
        if time.monotonic() > give_up:
            raise RuntimeError("the worker did not get there in time; see worker.log")
        time.sleep(_LOOK_S)


def _median(rates: list[float | None]) -> str:
    known = [rate for rate in rates if rate is not None]
    return f"{statistics.median(known):.2f} rows/s" if known else "too little to be told"


def _rate(store: Store, scope: Scope, job: Job, act: Any) -> float | None:
    """Rows a second that a job trains on meanwhile: from the last update told before it to the last told within.

    None if none was told.
    """
    before = _at(store, scope, job)
    act()
    after = _at(store, scope, job)
    return _BATCH * (after[0] - before[0]) / (after[1] - before[1]) if after > before else None


def _at(store: Store, scope: Scope, job: Job) -> tuple[int, float]:
    """Updates that a job has made, and its seconds when it ended the last: progress is told a second late or more."""
    told = store.jobs.get(scope, job.id).progress or {}
    done, left = int(told["update"]), int(told["updates"]) - int(told["update"])
    return done, done * told["seconds_left"] / left
