"""A real service over a tiny base, in a thread with a real socket, and what its tests make again and again."""

import contextlib
import json
import threading
import time

import httpx2
from production_making import beside
from store_making import rows

from prefix_engine.testing import random_prefix, tiny_base
from prefix_store import StoreSettings, open_store
from prefix_store.publish import TrainedPrefix
from service.parts import Parts
from service.server import Server
from service.settings import ServiceSettings

BASE = tiny_base(positions=256)
ADMIN_KEY = "an-admin-key-for-tests"


def slowed(service, seconds=0.02):
    """Every step of its engine takes longer, as a real model's does: from now on, or for a `with` block."""
    runner = service.parts.engine._loop._runner
    step, back = runner.step, contextlib.ExitStack()

    def slow(plan):
        time.sleep(seconds)
        return step(plan)

    runner.step = slow
    back.callback(setattr, runner, "step", step)
    return back


class Serving:
    """One running service; `store` is a second way into its database."""

    def __init__(self, data_dir, database_url=None, store=None, base=BASE, **settings):
        place = {"data_dir": data_dir, "database_url": database_url, "admin_key": ADMIN_KEY}
        if database_url is None:  # though a module's service beside may have a server
            place |= {"system_database_url": None, "owner_database_url": None}
        place |= beside(database_url) | {"process_dead_after": 120.0} | (store or {})
        chosen = {"port": 0, "metrics_port": 0, "kv_bytes": 64 << 20, "pool_bytes": 16 << 20} | settings
        chosen.setdefault("stuck_seconds", 3600.0)  # the process that a watchdog would end is the test's own
        self.base = base
        self.store = open_store(StoreSettings(**place))
        self.store.migrate()  # as the tables' owner, whose URL no service has
        self.parts = Parts.build(
            ServiceSettings(**chosen),
            open_store(StoreSettings(**place | {"owner_database_url": None})),
            base,
        )
        self.parts.open_metrics()
        self.server = Server(self.parts)
        self._clients = []
        self._thread = threading.Thread(target=self.server.run, daemon=True)

    def start(self):
        self._thread.start()
        give_up = time.monotonic() + 120
        while not self.server.started:
            assert time.monotonic() < give_up
            assert self._thread.is_alive()
            time.sleep(0.005)
        (listener,) = self.server.servers
        self.port = listener.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def stop(self):
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self._thread.join(120)
        assert not self._thread.is_alive()
        self.store.close()

    def client(self, key, **options):
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        made = httpx2.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False, **options)
        self._clients.append(made)
        return made

    def tenant(self, name=None, **limits):
        """A client of a new tenant; `.scope` is what its key reaches."""
        with self.client(ADMIN_KEY) as admin:
            name = name or f"tenant {time.monotonic_ns()}"
            made = admin.post("/v1/tenants", json={"name": name, "limits": limits or None}).json()
        return self._known(made["api_key"], tenant_id=made["id"])

    def user(self, tenant, name, scopes=None):
        """A client of a user, made if it is new."""
        if tenant.get(f"/v1/users/{name}").status_code == 404:
            assert tenant.post("/v1/users", json={"id": name}).status_code == 200
        made = tenant.post("/v1/keys", json={"user": name, "scopes": scopes}).json()
        return self._known(made["api_key"])

    def _known(self, key, **more):
        client = self.client(key)
        client.key, client.scope = key, self.store.keys.verify(key)
        for name, value in more.items():
            setattr(client, name, value)
        return client

    def upload(self, client, data=None, name="train.jsonl", **fields):
        data = rows(("a", "b")) if data is None else data
        return client.post("/v1/files", data={"purpose": "fine-tune", **fields}, files={"file": (name, data)})

    def claim(self, scope, label, name, files=None):
        """Queue a job and take it, as a worker does."""
        owner = self.store.owners.get(scope, label)
        if files is None:
            with self.store.datasets.writer(scope, owner, "train.jsonl") as writer:
                writer.write(rows(("a", "b")))
                files = [writer.finish().id]
        fingerprint = self.base.fingerprint
        job = self.store.jobs.create(scope, owner, name, files, base_fingerprint=fingerprint)
        claim = self.store.jobs.claim("worker")
        assert claim.job_id == job.id
        return claim

    def keep(self, claim, step, m=4, *, seed=0):
        """Keep a checkpoint of a job with a random prefix, as its worker does."""
        told = self._trained(random_prefix(self.base, m, seed=seed), m, {"step": step, "valid_loss": 3.0})
        self.store.jobs.save_checkpoint(claim, step, b"state", told)

    def _trained(self, prefix, m, metrics, offset=None):
        payload = prefix if isinstance(prefix, bytes) else prefix.to_bytes()
        template = {"separator": "\n", "end_id": self.base.config.end_id}
        return TrainedPrefix(payload, m, m if offset is None else offset, template, metrics, 9)

    def publish(self, scope, label, name, m=4, offset=None, *, seed=0, promote=True, files=None, prefix=None):
        """Train nothing, publish a random prefix the way a worker does; returns the version."""
        claim = self.claim(scope, label, name, files)
        prefix = prefix or random_prefix(self.base, m, offset=offset, seed=seed)
        return self.complete(claim, prefix, m, offset, promote=promote)

    def complete(self, claim, prefix, m=4, offset=None, *, promote=True):
        """End a job with a version."""
        trained = self._trained(prefix, m, {"held_out_loss": 1.0, "base_loss": 2.0}, offset)
        live = self.store.jobs.live(claim)
        compared = None if live is None else live.version_id
        return self.store.jobs.complete(
            claim, trained, promote=promote, compared_with=compared, reason="told"
        )


@contextlib.contextmanager
def serving(*args, **options):
    made = Serving(*args, **options)
    made.start()
    try:
        yield made
    finally:
        made.stop()


def complete(client, model, prompt="hello", **body):
    asked = {"model": model, "prompt": prompt, "max_tokens": 8, "temperature": 0, **body}
    return client.post("/v1/completions", json=asked)


def error_of(response):
    return response.json()["error"]


def events(lines):
    """JSON of a stream's events, up to its end mark."""
    for line in lines:
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))
