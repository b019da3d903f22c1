"""Processes that the command starts: the service and the worker, each by `python -m`.

Owns starting, waiting until ready, and stopping; knows no verb of the service beyond /readyz.
"""

import contextlib
import pwd
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.error import URLError
from urllib.request import ProxyHandler, build_opener

from service.cli.terminal import CommandError

READY_SECONDS = 180.0  # the first start may fetch a base model's weights from disk on a slow machine
STOP_SECONDS = 30.0
TAIL_LINES = 40
_PORTS = range(20_000, 30_000)
_given: set[int] = set()


@dataclass(slots=True)
class Child:
    """One started process; `log` is None if it writes to our own terminal."""

    name: str
    process: "subprocess.Popen[bytes]"
    log: Path | None

    def tail(self) -> str:
        """The last lines that it wrote."""
        if self.log is None:
            return ""
        lines = self.log.read_text(errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])


class Children:
    """Processes that stop when the block ends, whatever ends it."""

    def __init__(self, environment: Mapping[str, str], log_dir: Path | None = None) -> None:
        self._environment, self._log_dir = dict(environment), log_dir
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, name: str, module: str) -> Child:
        """Start `python -m module`."""
        return self.launch(name, [sys.executable, "-m", module])

    def launch(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> Child:
        """Start a command, in a session of its own so that Ctrl-C reaches only us.

        Args:
            name: of its log, and in complaints.
            command: program and arguments.
            environment: all of it; the block's own if None.
            user: that it runs as; ours if None.
        """
        log = self._log_dir / f"{name}.log" if self._log_dir else None
        given = self._environment if environment is None else dict(environment)
        quiet = {"stdin": subprocess.DEVNULL, "start_new_session": True, "env": given}
        if user is not None:
            quiet |= {"user": user, "group": pwd.getpwnam(user).pw_gid, "extra_groups": []}
        if log is None:
            process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]  # noqa: S603
        else:
            with log.open("ab") as sink:
                process = subprocess.Popen(  # type: ignore[call-overload]  # noqa: S603
                    command, stdout=sink, stderr=subprocess.STDOUT, **quiet
                )
        child = Child(name, process, log)
        self._children.append(child)
        return child

    def finish(self, child: Child, seconds: float) -> int:
        """Wait for a process that is to end by itself; its status, after which nobody misses it.

        Raises:
            CommandError: it has not ended in time.
        """
        try:
            status = child.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise CommandError(f"{child.name} has not ended after {seconds:.0f} s") from None
        self._children.remove(child)
        return status

    def check(self) -> None:
        """Raise CommandError if a process has ended by itself."""
        for child in self._children:
            status = child.process.poll()
            if status is not None:
                raise CommandError(f"the {child.name} ended by itself (status {status})")

    def wait_ready(self, url: str, seconds: float = READY_SECONDS) -> None:
        """Wait until the service takes requests; CommandError if it does not in time."""
        give_up = time.monotonic() + seconds
        while not _ready(url):
            self.check()
            if time.monotonic() > give_up:
                raise CommandError(f"the service at {url} is not ready after {seconds:.0f} s")
            time.sleep(0.2)

    def wait(self) -> None:
        """Return only by an exception: CommandError when a process ends, or what a signal raises."""
        while True:
            self.check()
            time.sleep(0.3)

    def stop(self, *names: str) -> None:
        """Ask every process to end, or those of these names, the last started first; kill one that does not."""
        living = [
            child
            for child in reversed(self._children)
            if child.process.poll() is None and (not names or child.name in names)
        ]
        for child in living:
            child.process.terminate()
        give_up = time.monotonic() + STOP_SECONDS
        for child in living:
            try:
                child.process.wait(max(0.1, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()

    def tails(self) -> str:
        """The last lines of every log, for a failure's report."""
        return "\n".join(f"--- {child.name}\n{child.tail()}" for child in self._children)


def free_port() -> int:
    """A port of this machine that nothing listens on now, and that was not given here before.

    None of those from which Linux, unless it is told otherwise, takes one for each connection: so none gets it before it
    is used.

    Raises:
        CommandError: there is none.
    """
    for _ in range(1000):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                return port
    raise CommandError("no port from 20000 to 29999 is free")


def _ready(url: str) -> bool:
    # urllib, not httpx2: a connection that is refused until the service is up is no error here.
    opener = build_opener(ProxyHandler({}))
    try:
        with opener.open(f"{url}/readyz", timeout=2) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
