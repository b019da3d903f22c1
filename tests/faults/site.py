"""The production form as real processes that a nemesis can reach: each can be killed, stopped and started again.

Our own PostgreSQL and Redis stand behind ways that can be cut; the object storage is moto's. Settings are those of
`docker-compose.production.yml`, over a tiny base.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import httpx2
import psycopg
from outside_servers import Way
from real_processes import children_of
from trainer_making import base_folder

from deploy import servers, topology
from deploy.secret_making import Places, make
from prefix_store import StoreSettings, open_store
from prefix_store.sealed_files import path_of
from service.cli.children import Children, free_port

PATIENCE_S = 120.0
SHAPE = {"positions": 1024, "width": 32, "spread": 0.5}
SMALL = {
    "PREFIX_ROWS": "16",
    "PREFIX_KV_BYTES": str(64 << 20),
    "PREFIX_POOL_BYTES": str(16 << 20),
    "PREFIX_KERNELS": "torch",
    "PREFIX_THREADS": "1",
    "PREFIX_WORKER_THREADS": "1",
    "PREFIX_WORKER_POLL_SECONDS": "0.1",
    "PREFIX_WORKER_CHECKPOINT_SECONDS": "0.5",
    "PREFIX_LEASE_SECONDS": "4",
    "PREFIX_LOG_LEVEL": "warning",
    "OMP_NUM_THREADS": "1",
}


def missing():
    """What this machine lacks of a site; None if nothing."""
    if shutil.which("redis-server") is None:
        return "redis-server is not installed"
    return None if servers.postgres_binaries() else "PostgreSQL's programs are not installed"


# Processes whose clocks are wrong, in seconds, where faketime is installed: leases are the database's.
CLOCKS = {"service-2": -3600, "worker-2": 3600}
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1"


class Site:
    """Servers and processes in one folder, from `with` to its end.

    Args:
        home: an empty folder that PostgreSQL's own user can enter.
        services: how many of the two.
        workers: how many of the two.
        wrong_clocks: whether the second service and the second worker are an hour off.
        settings: that stand in place of the compose file's.
    """

    def __init__(self, home, services=2, workers=2, *, wrong_clocks=False, **settings):
        self.home, self._wrong_clocks = Path(home), wrong_clocks
        self.names = [f"service-{n + 1}" for n in range(services)] + [
            f"worker-{n + 1}" for n in range(workers)
        ]
        self.children = Children({}, self._folder("logs"))
        self.processes, self.ports = {}, {}
        self.settings = SMALL | {f"PREFIX_{name.upper()}": str(value) for name, value in settings.items()}
        self._described = {process.name: process for process in topology.processes()}
        self._store, self._at_exit = None, []

    def __enter__(self):
        try:
            self._start_servers()
            self.settings["PREFIX_BASE_MODEL"] = base_folder(self._folder("base"), **SHAPE)
            migrate = self.start("migrate")
            assert migrate.wait(PATIENCE_S) == 0, self.said("migrate")
            for name in self.services:
                self.ports[name] = free_port()
            for name in self.names:
                self.start(name)
            for name in self.services:
                self.ready(name)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for act in self._at_exit:
            act()
        if self._store is not None:
            self._store.close()
        for process in self.processes.values():
            _end(process)
        self.database_way.cut()
        self.redis_way.cut()
        self.children.stop()

    @property
    def clocks_off(self):
        """How many processes have a wrong clock."""
        return sum(bool(self._clock(name)) for name in self.names)

    @property
    def services(self):
        return [name for name in self.names if name.startswith("service")]

    @property
    def workers(self):
        return [name for name in self.names if name.startswith("worker")]

    @property
    def admin_key(self):
        return (self.home / "secrets" / "prefix_admin_key").read_text().strip()

    def url(self, name):
        return f"http://127.0.0.1:{self.ports[name]}"

    def at_exit(self, act):
        """Do this when the site ends."""
        self._at_exit.append(act)

    def store(self):
        """A store of the harness's own, past every way, with every role."""
        if self._store is None:
            settings = {
                "data_dir": self.home / "data",
                "blobs_url": "s3://prefixserve/main",
                "blobs_endpoint": f"http://127.0.0.1:{self._storage}",
                "lease_seconds": float(self.settings["PREFIX_LEASE_SECONDS"]),
            }
            ways = {self.database_way.port: self._postgres_port, self.redis_way.port: self._redis_port}
            for name in ("database_url", "system_database_url", "owner_database_url", "redis_url"):
                url = (self.home / "secrets" / f"prefix_{name}").read_text().strip()
                for way, port in ways.items():
                    url = url.replace(f":{way}/", f":{port}/")
                settings[name] = url
            self._store = open_store(StoreSettings(**settings))
        return self._store

    def bucket(self):
        """The object storage as one who has its credentials sees it."""
        return Bucket(self.store().blobs.files)

    def rows(self, query, *values):
        """What the database says to one who is under no policy."""
        url = self._postgres_url.rpartition("/")[0] + "/prefixserve"
        with psycopg.connect(url, autocommit=True) as connection:
            return connection.execute(query, values).fetchall()

    def start(self, name):
        """Start a process that is not running; it is not waited for."""
        process = self._described[name]
        shown = self._folder("shown") / name
        if not shown.exists():
            topology.show(process, self.home / "secrets", shown.parent)
        places = topology.places(shown, self.home, self._storage, self.ports.get(name, 0), 0)
        with self._log(name).open("ab") as log:
            self.processes[name] = subprocess.Popen(
                process.argv(),
                env=topology.environment(process, places) | self.settings | self._clock(name),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.processes[name]

    def ready(self, name):
        """Wait until a service takes requests."""
        give_up = time.monotonic() + PATIENCE_S
        with httpx2.Client(trust_env=False, timeout=5) as probe:
            while True:
                with contextlib.suppress(httpx2.TransportError):
                    if probe.get(f"{self.url(name)}/readyz").status_code == 200:
                        return
                assert self.processes[name].poll() is None, self.said(name)
                assert time.monotonic() < give_up, self.said(name)
                time.sleep(0.1)

    def kill(self, name):
        """End a process at once, as a machine that goes out; its children too."""
        for pid in [*children_of(self.processes[name].pid), self.processes[name].pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes[name].wait(PATIENCE_S)

    def kill_child(self, name):
        """End a worker's training process alone; whether there was one."""
        found = children_of(self.processes[name].pid)
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return bool(found)

    @contextlib.contextmanager
    def stopped(self, name):
        """Within the block a process and its children stand still, as on a machine that hangs."""
        pids = [self.processes[name].pid, *children_of(self.processes[name].pid)]
        _signal(pids, signal.SIGSTOP)
        try:
            yield
        finally:
            _signal(pids, signal.SIGCONT)

    def pause(self, name, seconds):
        """Stop it for a while."""
        with self.stopped(name):
            time.sleep(seconds)

    def restart_postgres(self):
        """As after a loss of power: nobody is told, what was committed comes back from the log."""
        old = next(child for child in self.children._children if child.name == "postgres")
        self.children._children.remove(old)
        old.process.send_signal(signal.SIGQUIT)
        old.process.wait(PATIENCE_S)
        user = servers.POSTGRES_USER if os.geteuid() == 0 else None
        self.children.launch("postgres", old.process.args, user=user)
        self._postgres_answers()

    def restart_redis(self):
        """It comes back empty."""
        old = next(child for child in self.children._children if child.name == "redis")
        self.children._children.remove(old)
        _end(old.process)
        self.children.launch("redis", old.process.args)
        servers.listens("redis", self.children, self._redis_port)

    def cut_database(self):
        """Every connection to PostgreSQL breaks where it is; the next ones are let through."""
        self.database_way.cut()
        self.database_way.open()

    def cut_redis(self):
        """The same for Redis."""
        self.redis_way.cut()
        self.redis_way.open()

    def said(self, name):
        path = self._log(name)
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def _start_servers(self):
        self._postgres_port, self._redis_port, self._storage = free_port(), free_port(), free_port()
        self.database_way, self.redis_way = Way(self._postgres_port), Way(self._redis_port)
        folder = self.home / "secrets"
        make(folder, Places(f"127.0.0.1:{self.database_way.port}", f"127.0.0.1:{self.redis_way.port}"))
        password = folder / "postgres_password"
        self._postgres_url = servers.start_postgres(
            self.children, self.home / "postgres", self._postgres_port, password
        )
        servers.make_database(self._postgres_url, (folder / "prefix_owner_database_url").read_text().strip())
        servers.start_redis(self.children, self.home / "redis", self._redis_port, folder / "redis.conf")
        servers.start_storage(self.children, self._storage)

    def _postgres_answers(self):
        servers.until(
            "postgres",
            self.children,
            lambda: psycopg.connect(self._postgres_url, connect_timeout=5).close(),
            psycopg.OperationalError,
        )

    def _clock(self, name):
        if not (self._wrong_clocks and name in CLOCKS and Path(FAKETIME).exists()):
            return {}
        wrong = {
            "LD_PRELOAD": FAKETIME,
            "FAKETIME": f"{CLOCKS[name]:+d}s",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        return wrong | {"FAKETIME_DONT_RESET": "1"}

    def _log(self, name):
        return self.home / "logs" / f"{name}.log"

    def _folder(self, name):
        folder = self.home / name
        folder.mkdir(exist_ok=True)
        return folder


class Bucket:
    """Sealed files as they lie in the object storage.

    Args:
        files: the store's way to them.
    """

    def __init__(self, files):
        self._files, self._client = files, files._versions._access.client()

    def read(self, place):
        return self._client.get_object(**self._where(place))["Body"].read()

    def write(self, place, data):
        self._client.put_object(**self._where(place), Body=data)

    def _where(self, place):
        return {"Bucket": "prefixserve", "Key": f"{self._files._prefix}{path_of(place)}"}


def _signal(pids, number):
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end(process):
    if process.poll() is None:
        process.kill()
    process.wait(PATIENCE_S)
