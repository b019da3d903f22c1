"""Few against very many registered prefixes: time to resolve and admit a request, and memory.

Processes with a real store each take turns. Rows are inserted in bulk into the real tables; files
exist only of the versions that are loaded.
"""

import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from bench.service_child import Child, serve
from bench.service_run import M, ServiceRun
from bench.table import Row
from service.cli.bench_report import percentile

_TENANTS = 10
_FILES = 100  # prefixes that are loaded again and again; not more than the smallest registry has
_RESIDENT = 32  # prefixes that the pool has room for
_ROUNDS = 5
_SLICES = 20  # of a round
_DRAWS = 400  # of an interval
_NAMED = 20_000  # prefixes that are each named once before memory is read: more than a process remembers


def registry(run: ServiceRun) -> tuple[list[Row], dict[str, Any]]:
    """Times of every registry; memory of the first and the last."""
    counts = run.sizes.registered
    few, many = counts[0], counts[-1]
    times: dict[int, list[list[float]]] = {count: [] for count in counts}
    with ExitStack() as stack:
        children = {}
        with Child(_maker) as maker:  # a process of its own: its memory is not what is measured
            for count in counts:
                folder = run.folder / f"registry-{count}"
                keys = maker.ask("register", folder, count)
                children[count] = stack.enter_context(Child(_registry, folder, count, keys))
                run.say(f"  {count:,} prefixes registered")
        for child in children.values():
            child.ask("resolve", run.sizes.resolves)  # warm
        for _ in range(_ROUNDS):
            turn = run.referee.watched(partial(_turn, children, run.sizes.resolves))
            for count in counts:
                times[count].append(turn[count])
        files = min(_FILES, few)
        for count in (few, many):
            children[count].ask("name", min(_NAMED, count))
        used = {count: children[count].ask("generate", files) for count in (few, many)}
        memory = {count: found["memory"] for count, found in used.items()}
        run.say(f"  {used}")
    points = {
        count: {f"p{point}": [1000 * percentile(turn, point) for turn in turns] for point in (50, 99)}
        for count, turns in times.items()
    }
    pooled = {count: [1000 * one for turn in turns for one in turn] for count, turns in times.items()}
    return _rows(run, pooled, memory, used[many]), {"milliseconds": points, "used": used}


def _turn(children: dict[int, Child], resolves: int) -> dict[int, list[float]]:
    """Seconds of so many calls of each, a few at a time in turn: what disturbs the machine hits all alike."""
    times: dict[int, list[float]] = {count: [] for count in children}
    for _ in range(_SLICES):
        for count, child in children.items():
            times[count] += child.ask("resolve", resolves // _SLICES)
    return times


def _rows(
    run: ServiceRun, pooled: dict[int, list[float]], memory: dict[int, int], used: dict[str, int]
) -> list[Row]:
    few, many = run.sizes.registered[0], run.sizes.registered[-1]
    p99 = {count: percentile(found, 99) for count, found in pooled.items()}
    each = ", ".join(f"{count:,}: {found:.2f} ms" for count, found in p99.items())
    low, high = _between(pooled[many], pooled[few])
    return [
        Row(
            f"resolve and admit, p99, {many:,} registered prefixes against {few:,}",
            f"{p99[many]:.2f} ms",
            f"{each}; {_ROUNDS} rounds of {run.sizes.resolves} names in turn, all times of a registry together; 95% "
            f"interval {low:.2f} to {high:.2f}",
            p99[many] / p99[few],
            at_most=1.2,
        ),
        Row(
            f"memory of the process, {many:,} registered prefixes against {few:,}",
            f"{memory[many] / 1e6:.0f} MB after {min(_NAMED, many):,} of them were named once each and {used['generations']} "
            f"generations, {used['resident']} prefixes in a pool of {_RESIDENT}, {used['evictions']} evicted",
            f"{memory[few] / 1e6:.0f} MB",
            memory[many] / memory[few],
            at_most=1.05,
        ),
    ]


def _between(many: Sequence[float], few: Sequence[float]) -> tuple[float, float]:
    """Bootstrap interval of the ratio of both 99th percentiles."""
    draw = random.Random(0)
    ratios = sorted(
        percentile(draw.choices(many, k=len(many)), 99) / percentile(draw.choices(few, k=len(few)), 99)
        for _ in range(_DRAWS)
    )
    return ratios[int(0.025 * _DRAWS)], ratios[int(0.975 * _DRAWS)]


def _base() -> Any:
    """Wide enough that the smallest pool that may be set holds no more than `_RESIDENT` prefixes."""
    from prefix_engine.testing import tiny_base  # noqa: PLC0415 - in the children alone

    return tiny_base(width=128)


def _maker(pipe: Connection) -> None:
    """The process that fills stores."""
    from prefix_store import StoreSettings, open_store  # noqa: PLC0415 - in the child alone
    from prefix_store.scope import Admin  # noqa: PLC0415

    def register(folder: Path, count: int) -> list[str]:
        """Make a store with tenants and their prefixes; the tenants' keys."""
        store = open_store(StoreSettings(data_dir=folder))
        store.migrate()
        keys = [store.tenants.create(Admin(), f"t{i}")[1] for i in range(_TENANTS)]
        _insert(store, [store.keys.verify(key) for key in keys], _base(), count)
        store.close()
        return keys

    serve(pipe, {"register": register})


def _registry(pipe: Connection, folder: Path, count: int, keys: Sequence[str]) -> None:
    """The process that is measured."""
    from prefix_store import StoreSettings, open_store  # noqa: PLC0415 - in the child alone
    from service.parts import Parts  # noqa: PLC0415
    from service.settings import ServiceSettings  # noqa: PLC0415

    base = _base()
    store = open_store(StoreSettings(data_dir=folder))
    page_bytes = 16 * 2 * base.config.layers * base.config.width * 4  # one holds a prefix
    settings = ServiceSettings(metrics_port=0, kv_bytes=1 << 20, pool_bytes=_RESIDENT * page_bytes)
    parts = Parts.build(settings, store, base)
    parts.start()
    scopes = [store.keys.verify(key) for key in keys]
    chance = random.Random(0)

    def resolve(calls: int) -> list[float]:
        """Seconds of each call: all that a request passes before the engine hears of it."""
        times = []
        for _ in range(calls):
            scope, name = chance.choice(scopes), f"u{chance.randrange(count // _TENANTS)}:p"
            start = time.perf_counter()
            ticket, _ = _admitted(parts, scope, name)
            times.append(time.perf_counter() - start)
            parts.tickets.end(ticket)
        return times

    def name(most: int) -> None:
        """Resolve and admit so many prefixes once each."""
        for place in range(most):
            ticket, _ = _admitted(parts, scopes[place % _TENANTS], f"u{place // _TENANTS}:p")
            parts.tickets.end(ticket)

    def generate(files: int) -> dict[str, int]:
        """Load and use this many prefixes in turn, four times each; the resident memory afterwards, bytes."""
        for call in range(4 * files):
            place = call % files
            ticket, ready = _admitted(parts, scopes[place % _TENANTS], f"u{place // _TENANTS}:p")
            _generated(parts, ready)
            parts.tickets.end(ticket)
        status = Path("/proc/self/status").read_text()
        stats = parts.engine.stats()
        return {
            "memory": int(status.partition("VmRSS:")[2].split()[0]) * 1024,
            "generations": 4 * files,
            "resident": stats.resident_prefixes,
            "evictions": stats.pool_evictions,
        }

    serve(pipe, {"resolve": resolve, "name": name, "generate": generate})
    parts.stop()


def _admitted(parts: Any, scope: Any, name: str) -> tuple[Any, Any]:
    """What `POST /v1/completions` does between the key and the engine."""
    from service.admission import Demand  # noqa: PLC0415
    from service.prompts import plan  # noqa: PLC0415
    from service.routes.completions import _look_up  # noqa: PLC0415
    from service.schemas import CompletionBody  # noqa: PLC0415

    body = CompletionBody(model=name, prompt=[1, 2, 3], max_tokens=1)
    tenant, resolved, used = _look_up(parts, scope, name)
    parts.admission.rate(tenant)
    parts.admission.quota(tenant, used.tokens)
    reuse = parts.reuse.ids(scope, None)
    ready = plan(parts.base, body, resolved, scope.tenant_id, reuse, time.monotonic() + 60)
    parts.residency.note(resolved)
    ticket = parts.tickets.open(scope.tenant_id, None, resolved, name)
    parts.admission.queue(tenant, ticket, Demand(1, 1, 2), 60, used)
    return ticket, ready


def _generated(parts: Any, ready: Any) -> None:
    from prefix_engine import Failed  # noqa: PLC0415
    from prefix_engine.testing import Collected  # noqa: PLC0415

    sink = Collected()
    parts.engine.submit(ready.requests[0], sink)
    last = sink.wait()
    if isinstance(last, Failed):
        raise RuntimeError(f"{last.code}: {last.message}")  # noqa: TRY004 - a failure, not a type


def _insert(store: Any, scopes: Sequence[Any], base: Any, count: int) -> None:
    """One prefix of one version for each of `count` users, spread over the tenants."""
    from sqlalchemy import insert  # noqa: PLC0415

    from prefix_engine.testing import random_prefix  # noqa: PLC0415
    from prefix_store.crypto import Place  # noqa: PLC0415
    from prefix_store.tables import owners, prefixes, versions  # noqa: PLC0415

    payload = random_prefix(base, M, offset=0).to_bytes()
    template = {"separator": "\n", "end_id": base.config.end_id}
    shape = {
        "number": 1,
        "m": M,
        "position_offset": 0,
        "base_fingerprint": base.fingerprint,
        "template": template,
    }
    rest = {"metrics": {}, "bytes": len(payload), "job_id": "job", "was_live": True, "created_at": 0.0}
    made: dict[Any, list[dict[str, Any]]] = {owners: [], prefixes: [], versions: []}
    for place in range(count):
        scope, user = scopes[place % _TENANTS], place // _TENANTS
        ids = {"tenant_id": scope.tenant_id, "owner_id": f"own{place}"}
        sha256 = "0" * 64
        if place < _FILES:
            sha256 = store.blobs.put(Place(ids["tenant_id"], ids["owner_id"], f"ver{place}"), payload)
        made[owners].append(ids | {"kind": "user", "name": f"u{user}", "state": "live", "created_at": 0.0})
        live = {"prefix_id": f"pre{place}", "live_version_id": f"ver{place}"}
        made[prefixes].append(ids | live | {"name": "p", "last_number": 1, "created_at": 0.0})
        own = {"version_id": f"ver{place}", "prefix_id": f"pre{place}", "sha256": sha256}
        made[versions].append(ids | own | shape | rest)
    with store._system.write() as connection:  # noqa: SLF001 - no other way makes so many
        for table, rows in made.items():
            for start in range(0, count, 5000):
                connection.execute(insert(table), rows[start : start + 5000])
    made.clear()
