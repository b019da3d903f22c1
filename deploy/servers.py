"""The servers beside our processes, as processes on loopback: PostgreSQL, Redis, an object storage, Prometheus.

Owns how each is started and when it answers; what they are told of secrets is read from the installation's files.
"""

import json
import os
import pwd
import shutil
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from deploy.topology import ROOT
from service.cli.children import Children
from service.cli.terminal import CommandError

PATIENCE_S = 120.0
POSTGRES_USER = "postgres"  # the server refuses to run as root; Debian has this user for it


def find(name: str, folders: list[Path], package: str) -> str:
    """Where a server's program is.

    Raises:
        CommandError: nowhere.
    """
    path = os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath), "/usr/sbin"])
    found = shutil.which(name, path=path)
    if found is None:
        raise CommandError(f"{name} is not installed: apt-get install {package}")
    return found


def postgres_binaries() -> list[Path]:
    """Debian's folders of PostgreSQL's programs, the newest first."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(folders, key=lambda path: int(path.parent.name), reverse=True)


def start_postgres(children: Children, folder: Path, port: int, password: Path) -> str:
    """A server of our own in `folder`; the superuser's URL.

    Raises:
        CommandError: its programs are missing, or it does not come up.
    """
    binaries = postgres_binaries()
    initdb, postgres = (find(name, binaries, "postgresql") for name in ("initdb", "postgres"))
    user = POSTGRES_USER if os.geteuid() == 0 else None
    secret = password.read_text().strip()
    folder.mkdir(mode=0o700)
    word = folder / "password"
    word.write_text(secret + "\n")
    word.chmod(0o600)
    if user is not None:
        for path in (folder, word):
            os.chown(path, pwd.getpwnam(user).pw_uid, -1)
    data = str(folder / "data")
    made = children.launch(
        "initdb",
        [
            initdb,
            "-D",
            data,
            "-U",
            "postgres",
            "-A",
            "scram-sha-256",
            f"--pwfile={word}",
            "-E",
            "UTF8",
            "--no-sync",
        ],
        user=user,
    )
    if children.finish(made, PATIENCE_S) != 0:
        raise CommandError(f"initdb failed:\n{made.tail()}")
    word.unlink()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": port,
        "unix_socket_directories": "",
        "max_connections": 250,
    }
    given = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    # At SIGTERM it waits for its clients to leave; so they are ended before it.
    children.launch("postgres", [postgres, "-D", data, *given], user=user)
    url = f"postgresql://postgres:{secret}@127.0.0.1:{port}/postgres"
    until(
        "postgres",
        children,
        lambda: psycopg.connect(url, connect_timeout=5).close(),
        psycopg.OperationalError,
    )
    return url


def make_database(url: str, owner_url: str) -> None:
    """What `deploy/postgres/owner.sh` makes in the container: the tables' owner and the database.

    Args:
        url: of somebody who may make roles and databases.
        owner_url: with the owner's name and password, and the database's name.

    Raises:
        CommandError: the server does not answer or refuses; its reason is named.
    """
    owner = urlsplit(owner_url)
    role, database = sql.Identifier(str(owner.username)), sql.Identifier(owner.path[1:])
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as server:
            server.execute(
                sql.SQL("CREATE ROLE {} LOGIN CREATEROLE PASSWORD {}").format(
                    role, sql.Literal(owner.password)
                )
            )
            server.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(database, role))
    except psycopg.Error as error:
        raise CommandError(f"PostgreSQL: {str(error).strip().splitlines()[0]}") from error


def place_of(url: str) -> str:
    """`host:port` of a server's URL."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or 5432}"


def drop_database(url: str, database: str) -> None:
    """Remove a database that `make_database` and `prefixserve migrate` made on somebody's server, and its roles."""
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as server:
        server.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database)))
        for kind in ("app", "system", "owner"):
            server.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(f"{database}_{kind}")))


def start_redis(children: Children, folder: Path, port: int, conf: Path) -> None:
    """A server that keeps nothing, with the installation's own configuration."""
    server = find("redis-server", [], "redis-server")
    folder.mkdir(mode=0o700)
    children.launch(
        "redis", [server, str(conf), "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    )
    listens("redis", children, port)


def start_storage(children: Children, port: int) -> None:
    """An S3 of moto's, which asks nobody who he is and forgets everything at its end."""
    children.launch("s3", [sys.executable, "-m", "deploy.storage_server", "--port", str(port)])
    listens("s3", children, port)


def start_prometheus(children: Children, folder: Path, port: int, targets: list[int]) -> bool:
    """Prometheus with the project's configuration, if it is installed; whether it is."""
    server = shutil.which("prometheus")
    if server is None:
        return False
    shutil.copytree(ROOT / "deploy" / "prometheus", folder)
    told = [{"targets": [f"127.0.0.1:{target}" for target in targets]}]
    (folder / "targets.json").write_text(json.dumps(told))
    children.launch(
        "prometheus",
        [
            server,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
    )
    return True


def listens(name: str, children: Children, port: int) -> None:
    """Wait until a port of this machine takes connections."""
    until(name, children, lambda: socket.create_connection(("127.0.0.1", port), 1).close(), OSError)


def until(name: str, children: Children, tried: Callable[[], None], refused: type[Exception]) -> None:
    """Try again while it is refused; CommandError when a process has ended or time is over."""
    give_up = time.monotonic() + PATIENCE_S
    while True:
        try:
            tried()
        except refused as error:
            children.check()
            if time.monotonic() > give_up:
                raise CommandError(f"{name} does not answer after {PATIENCE_S:.0f} s") from error
            time.sleep(0.1)
        else:
            children.check()  # if it has ended, somebody else answers there
            return
