"""A service to be measured: a folder with tenants and published prefixes, and the real process over it.

Versions are published as a worker publishes them: dataset, job, claim, completion, each its transaction.
"""

import os
import resource
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.service_child import cpu_seconds
from prefix_engine import Base
from prefix_engine.testing import random_prefix
from prefix_store import Store, StoreSettings, open_store
from prefix_store.publish import TrainedPrefix
from prefix_store.scope import Admin, Scope
from prefix_store.tenants import TenantLimits
from service.cli.children import Child, Children, free_port

_ROW = b'{"prompt": "a", "completion": "b"}\n'


@dataclass(frozen=True)
class Tenant:
    """One customer: its key, and the names of its prefixes, the most popular first."""

    name: str
    key: str
    prefixes: tuple[str, ...]


def found(folder: Path, base: Base, sizes: Sequence[int], m: int = 10) -> list[Tenant]:
    """Make a store in `folder` with one tenant for each of `sizes`, which says how many prefixes it has."""
    store = open_store(StoreSettings(data_dir=folder))
    store.migrate()
    tenants = []
    for number, size in enumerate(sizes):
        limits = TenantLimits(max_jobs=10_000)
        made, key = store.tenants.create(Admin(), f"tenant-{number}", limits)
        scope = store.keys.verify(key)
        assert isinstance(scope, Scope)
        names = _publish(store, scope, base, size, m, seed=1000 * number)
        tenants.append(Tenant(made.name, key, names))
    store.close()
    return tenants


def _publish(store: Store, scope: Scope, base: Base, count: int, m: int, seed: int) -> tuple[str, ...]:
    owner = store.owners.create_user(scope, "user")
    with store.datasets.writer(scope, owner, "train.jsonl") as writer:
        writer.write(_ROW)
        dataset = writer.finish()
    template = {"separator": "\n", "end_id": base.config.end_id}
    names = []
    for i in range(count):
        payload = random_prefix(base, m, offset=0, seed=seed + i, spread=0.5).to_bytes()
        store.jobs.create(scope, owner, f"p{i}", [dataset.id], base_fingerprint=base.fingerprint)
        claim = store.jobs.claim("bench")
        trained = TrainedPrefix(payload, m, 0, template, {})
        store.jobs.complete(claim, trained, promote=True, reason="made for a measurement")
        names.append(f"user:p{i}")
    return tuple(names)


class Running:
    """`python -m service` on a folder, until the block ends."""

    def __init__(self, folder: Path, base_model: str, **settings: str) -> None:
        port = free_port()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("PREFIX_") or name == "PREFIX_DEVICE"
        }
        own = {
            "PREFIX_DATA_DIR": str(folder),
            "PREFIX_PORT": str(port),
            "PREFIX_METRICS_PORT": "0",
            "PREFIX_BASE_MODEL": base_model,
            "PREFIX_PROMPT_CACHE_SECONDS": "0",  # the same prompts come again; computing is measured
        }
        more = {f"PREFIX_{name.upper()}": value for name, value in settings.items()}
        self.url = f"http://127.0.0.1:{port}"
        self._children = Children(kept | own | more, folder)
        self._child: Child

    def __enter__(self) -> Self:
        self._child = self._children.start("service", "service")
        try:
            self._children.wait_ready(self.url, 300)
        except BaseException:
            print(self._children.tails())
            self._children.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._children.stop()

    def start_worker(self) -> None:
        """Start a worker beside it, with the same settings; it ends with the service."""
        self._children.start("worker", "trainer_worker")

    @property
    def pid(self) -> int:
        """Of the service."""
        return self._child.process.pid

    def cpu_seconds(self) -> float:
        """Processor time that the service used until now."""
        return cpu_seconds(self.pid)


def own_cpu_seconds() -> float:
    """Processor time of this process: that of the load generator."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
