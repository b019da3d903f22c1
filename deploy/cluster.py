"""`make cluster`: what `docker-compose.production.yml` describes, as plain processes on this machine's loopback.

Two services behind nginx and two workers, with PostgreSQL, Redis, an object storage (moto's, for tests) and, where it
is installed, Prometheus. Free ports, secrets made anew in files of mode 0600, everything in one folder that is removed
at the end. `--once` tells the demo's story through nginx and exits with its status.
"""

import argparse
import secrets
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deploy import proxy, servers, topology
from deploy.secret_making import Places, make
from service.cli.children import Child, Children, free_port
from service.cli.demo import Story
from service.cli.processes import stopping
from service.cli.terminal import CommandError, complain, out, plain

MIGRATE_S = 120.0


@dataclass(slots=True)
class Cluster:
    """One cluster in one folder.

    Attributes:
        home: its folder, of mode 0700.
        children: its processes; who opened them ends them.
        postgres: a superuser's URL of a server that is there; None starts one.
        settings: that stand in place of `deploy/production.env`'s.
        url: of nginx, when it has started.
        database: that stands on somebody's server and is to be removed, if it is not our own.
    """

    home: Path
    children: Children
    postgres: str | None = None
    settings: Mapping[str, str] = field(default_factory=dict)
    url: str = ""
    prometheus: str = ""
    database: str = "prefixserve"
    _ports: dict[str, tuple[int, int]] = field(default_factory=dict)
    _storage: int = 0

    @property
    def secrets(self) -> Path:
        """The folder of all secrets."""
        return self.home / "secrets"

    def start(self, workers: int = 2) -> None:
        """Everything, in the order of the file.

        Raises:
            CommandError: something is not installed, or does not come up.
        """
        if (lacks := proxy.missing()) is not None:
            raise CommandError(lacks)
        self._servers()
        processes = {process.name: process for process in topology.processes()}
        made = self._start(processes["migrate"])
        if self.children.finish(made, MIGRATE_S) != 0:
            raise CommandError(f"migrate failed:\n{made.tail()}")
        services = [name for name in processes if name.startswith("service-")]
        self._ports = {name: (free_port(), free_port()) for name in services}
        for name in services:
            self._start(processes[name])
        for name in services:
            self.children.wait_ready(f"http://127.0.0.1:{self._ports[name][0]}")
        for name in [name for name in processes if name.startswith("worker-")][:workers]:
            self._start(processes[name])
        port = free_port()
        self.children.launch(
            "nginx", proxy.command(self.home / "nginx", port, [api for api, _ in self._ports.values()])
        )
        self.url = f"http://127.0.0.1:{port}"
        self.children.wait_ready(self.url)
        watched = free_port()
        metrics = [own for _, own in self._ports.values()]
        if servers.start_prometheus(self.children, self.home / "prometheus", watched, metrics):
            self.prometheus = f"http://127.0.0.1:{watched}"

    def stop(self) -> None:
        """Services and workers first, so that what runs is finished while all that they need is there."""
        self.children.stop(*topology.OURS)
        self.children.stop()

    def admin_key(self) -> str:
        """The operator's key."""
        return (self.secrets / "prefix_admin_key").read_text().strip()

    def service_urls(self) -> list[str]:
        """Of each service itself, past nginx."""
        return [f"http://127.0.0.1:{api}" for api, _ in self._ports.values()]

    def remove(self) -> None:
        """Take our database off somebody's server, when the processes have ended."""
        if self.postgres is not None:
            servers.drop_database(self.postgres, self.database)

    def _servers(self) -> None:
        port, redis, self._storage = free_port(), free_port(), free_port()
        place = f"127.0.0.1:{port}"
        if self.postgres is not None:
            self.database = f"prefixserve_{secrets.token_hex(6)}"
            place = servers.place_of(self.postgres)
        make(self.secrets, Places(place, f"127.0.0.1:{redis}", self.database))
        url = self.postgres or servers.start_postgres(
            self.children, self.home / "postgres", port, self.secrets / "postgres_password"
        )
        servers.make_database(url, (self.secrets / "prefix_owner_database_url").read_text().strip())
        servers.start_redis(self.children, self.home / "redis", redis, self.secrets / "redis.conf")
        servers.start_storage(self.children, self._storage)

    def _start(self, process: topology.Process) -> Child:
        api, metrics = self._ports.get(process.name, (0, 0))
        shown = topology.show(process, self.secrets, self.home / "shown")
        places = topology.places(shown, self.home, self._storage, api, metrics)
        environment = topology.environment(process, places) | dict(self.settings)
        return self.children.launch(process.name, process.argv(), environment)


def main() -> None:
    """Start it, tell the story or wait for Ctrl-C, end it."""
    parser = argparse.ArgumentParser(prog="python -m deploy.cluster", description=__doc__)
    parser.add_argument("--once", action="store_true", help="tell the demo's story through nginx, then stop")
    parser.add_argument("--max-steps", type=int, help="most updates of each training of the story")
    parser.add_argument("--postgres", help="URL of a superuser of a server that runs; else one is started")
    asked = parser.parse_args()
    try:
        with stopping():
            _run(asked.once, asked.max_steps, asked.postgres)
    except KeyboardInterrupt:
        sys.exit(130)
    except CommandError as error:
        complain(str(error))
        sys.exit(1)


def _run(once: bool, max_steps: int | None, postgres: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="prefixserve-cluster-") as name:
        home = Path(name)
        home.chmod(0o711)  # PostgreSQL's user passes through; each folder below is its own owner's
        logs = home / "logs"
        logs.mkdir(mode=0o700)
        cluster = Cluster(home, Children({}, logs), postgres)
        try:
            with cluster.children as children:
                try:
                    cluster.start()
                    out().print(plain(_greeting(cluster)))
                    if once:
                        Story(children, cluster.url, max_steps).tell(cluster.admin_key())
                    else:
                        _wait(children)
                except CommandError:
                    complain(f"the processes wrote last:\n{children.tails()}")
                    raise
                finally:
                    cluster.stop()
        finally:
            cluster.remove()


def _wait(children: Children) -> None:
    try:
        children.wait()
    except KeyboardInterrupt:
        out().print(plain("\nstopping: running requests finish first"))


def _greeting(cluster: Cluster) -> str:
    watched = f"\nPrometheus is on {cluster.prometheus}" if cluster.prometheus else ""
    return (
        f"two services behind nginx on {cluster.url}\n"
        f"the admin key is in {cluster.secrets / 'prefix_admin_key'}\n"
        f"logs are in {cluster.home / 'logs'}{watched}\n"
        "Ctrl-C stops everything and removes it.\n"
    )


if __name__ == "__main__":
    main()
