"""Failpoints inside the service's and the worker's processes, tried with real processes on a tiny base.

One service in which nothing is armed runs throughout, as a second replica does: what a client was not told by the
process that failed it asks the other. `python -m faults.processes_tried [point ...]` from `tests` tries a part.
"""

import contextlib
import json
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx2
from real_processes import Machine
from trainer_making import base_folder, dataset

from faults.processes_parts import TRIES, try_worker
from prefix_engine import load_base
from prefix_engine.testing import random_prefix
from prefix_store import StoreSettings, open_store
from prefix_store.failpoints import POINTS
from prefix_store.publish import TrainedPrefix
from service.cli.children import free_port

POINTS_HERE = tuple(name for name in POINTS if name.startswith(("worker.", "service.")))
ACTS = {"kill": "kill", "raise": "raise", "sleep": "sleep(1.5)"}
SMALL = {"worker.before_settle": ("kill",), "service.deleted": ("kill",)}
SETTINGS = {
    "rows": 16,
    "kv_bytes": 64 << 20,
    "pool_bytes": 16 << 20,
    "kernels": "torch",
    "threads": 1,
    "worker_threads": 1,
    "worker_poll_seconds": 0.1,
    "worker_checkpoint_seconds": 0.01,
    "lease_seconds": 3,
}


class Site(Machine):
    """A machine with one tenant, one user and one service that nothing is armed in."""

    def __init__(self, folder):
        self.base_folder = base_folder(folder / "base", positions=256)
        super().__init__(folder, base_model=self.base_folder, **SETTINGS)

    def open(self):
        self.serve()
        self.acme = self.tenant()
        self.alice = self.user(self.acme, "alice")
        self.file = self.upload(self.alice, [json.loads(line) for line in dataset().splitlines()])
        self.base = load_base(self.base_folder, "cpu")
        self.store = open_store(StoreSettings(data_dir=self.folder / "store"))
        self._numbers = iter(range(1, 1000))
        return self

    def name(self):
        return f"p{next(self._numbers)}"

    @contextlib.contextmanager
    def armed(self, module, point, act):
        """A process of its own port in which one point is armed; it has ended when the block has."""
        port, url = free_port(), self.url
        before = dict(self.environment)
        self.environment |= {"PREFIX_FAILPOINTS": f"{point}={act}", "PREFIX_PORT": str(port)}
        self.url = f"http://127.0.0.1:{port}"
        try:
            process = self.serve() if module == "service" else self.start(module)
        finally:
            self.environment, mine, self.url = before, self.url, url
        try:
            with httpx2.Client(
                base_url=mine, headers=self.alice.headers, timeout=30, trust_env=False
            ) as client:
                yield process, client
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            process.wait(60)

    def reached(self, module, point, since):
        return f"failpoint {point}" in self.said(module)[since:]

    def publish(self, name):
        """A random prefix, published as a worker does."""
        scope = self.store.keys.verify(self.acme.key)
        owner = self.store.owners.get(scope, "alice")
        self.store.jobs.create(scope, owner, name, [self.file], base_fingerprint=self.base.fingerprint)
        claim = self.store.jobs.claim("harness")
        payload = random_prefix(self.base, 4).to_bytes()
        template = {"separator": "\n", "end_id": self.base.config.end_id}
        made = TrainedPrefix(payload, 4, 4, template, {"held_out_loss": 1.0}, 9)
        return self.store.jobs.complete(claim, made, promote=True).full_name.partition("@")[0]


def try_processes(say, chosen=None):
    """Each point with each act, or those of `chosen` (acts by point); counts."""
    chosen = chosen or dict.fromkeys(POINTS_HERE, tuple(ACTS))
    passed, not_reached, failed, tried = 0, [], [], 0
    with tempfile.TemporaryDirectory(prefix="failpoints-") as folder, Site(Path(folder)) as site:
        site.open()
        for point, acts in chosen.items():
            module = "trainer_worker" if point.startswith("worker.") else "service"
            for act in acts:
                tried += 1
                since = len(site.said(module))
                with site.armed(module, point, ACTS[act]) as (process, client):
                    wrong = TRIES.get(point, try_worker)(site, point, act, process, client)
                if act == "kill" and process.returncode != -signal.SIGKILL:
                    wrong.append(f"the process ended with {process.returncode}")
                if not site.reached(module, point, since):
                    not_reached.append(f"{point}={act}")
                elif wrong:
                    failed.append({"what": f"{point}={act}", "wrong": wrong})
                    say(f"{point}={act}: {wrong}")
                else:
                    passed += 1
        found = site.store.fsck.look(deep=True, grace_seconds=0.0)
        if not found.sound:
            failed.append({"what": "the store", "wrong": [str(found.missing), str(found.damaged)]})
        site.store.close()
    counts = {"points": len(chosen), "tried": tried, "passed": passed}
    return counts | {"not reached": not_reached, "failed": failed}


if __name__ == "__main__":
    names = [name for name in POINTS_HERE if not sys.argv[1:] or name.startswith(tuple(sys.argv[1:]))]
    start = time.monotonic()
    print(json.dumps(try_processes(print, dict.fromkeys(names, tuple(ACTS))), indent=1))
    print(round(time.monotonic() - start, 1), "s")
