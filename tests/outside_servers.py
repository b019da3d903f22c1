"""Servers that tests start themselves: an S3 that is moto's, a Redis, and a way to either that can be cut or slowed."""

import atexit
import contextlib
import os
import select
import shutil
import socket
import subprocess
import sys
import threading
import time
from functools import cache
from pathlib import Path

from service.cli.children import free_port

PATIENCE_S = 120
ROOT = Path(__file__).parents[1]

# moto asks nobody who he is; but somebody must be there, and nothing of this machine's is to be found.
os.environ |= {
    "AWS_ACCESS_KEY_ID": "tests",
    "AWS_SECRET_ACCESS_KEY": "tests",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@cache
def object_storage():
    """Endpoint of an S3 that holds nothing at first; one for each process that runs tests."""
    port = free_port()
    command = [sys.executable, "-m", "deploy.storage_server", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    atexit.register(_end, process)
    _listens(port, process)
    return f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def redis_server(folder):
    """A Redis of one's own that keeps nothing; the port."""
    port = free_port()
    kept = ["--save", "", "--appendonly", "no", "--dir", str(folder)]
    command = [shutil.which("redis-server"), "--port", str(port), "--bind", "127.0.0.1", *kept]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        _listens(port, process)
        yield port
    finally:
        _end(process)


def _listens(port, process):
    give_up = time.monotonic() + PATIENCE_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        assert process.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.02)


def _end(process):
    if process.poll() is None:
        process.kill()
    process.wait(PATIENCE_S)


class Way:
    """A TCP proxy: `open`, `cut` (connections end, new ones are refused) or `mute` (nothing comes back)."""

    def __init__(self, port):
        self._to = port
        self._mute = False
        self._listener = None
        self._pairs = []
        self.asked = 0  # connections that came
        self.swallowed = 0  # pieces that were let through to nobody
        self.port = free_port()
        self.open()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cut()

    def open(self):
        self._mute = False
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def mute(self):
        self._mute = True

    def cut(self):
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for pair in list(self._pairs):
            for side in pair:
                with contextlib.suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        while True:
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.asked += 1
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near):
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            pair = (near, far)
            self._pairs.append(pair)
            try:
                while True:
                    for side in select.select(pair, [], [], 1.0)[0]:
                        data = side.recv(1 << 16)
                        if not data:
                            return
                        if self._mute:
                            self.swallowed += 1
                            continue
                        (far if side is near else near).sendall(data)
            finally:
                self._pairs.remove(pair)
