"""The worker's hold on its training process: start, listen, ask to stop, kill.

The process gets what it needs and no more: no database, no key, no setting of ours but the form of its log stands
in its environment. It leads a process group of its own, so that killing it leaves nothing.
"""

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Self

from prefix_store.failpoints import failpoint
from trainer_worker import frames
from trainer_worker.frames import Frame

# Where programs and weights lie, how many threads, which devices; tokens of the hub are not among them.
_KEPT = [
    "PATH",
    "HOME",
    "LANG",
    "LC_ALL",
    "TZ",
    "TMPDIR",
    "LD_LIBRARY_PATH",
    "PYTHONPATH",
    "PREFIX_LOG_FORMAT",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "HF_ENDPOINT",
    "XDG_CACHE_HOME",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
]
# Threads that wait for one another by spinning come to a halt as soon as another process, such as the service,
# wants a core: ten times slower was measured on 2 cores. Sleeping costs little when nobody else is there.
_OURS = {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
_KILL_SECONDS = 10.0


class Ended(Exception):
    """The process ended without saying how its job did."""


class Child:
    """One training process; killed, if it still runs, when the block ends. `order` is of its first job."""

    def __init__(self, order: Iterable[Frame]) -> None:
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "trainer_worker.child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept | _OURS,
            start_new_session=True,
        )
        failpoint("worker.child_started")
        self._told: queue.Queue[Frame | None] = queue.Queue(maxsize=64)
        self._killed = False
        self._orders: queue.SimpleQueue[list[Frame] | None] = queue.SimpleQueue()
        self.send(order)
        threading.Thread(target=self._write, daemon=True).start()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        """Of the process, which is its group's too."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it will tell nothing more than what has arrived."""
        return not self._listener.is_alive()

    def hear(self, seconds: float) -> Frame | None:
        """Return the next frame, None if none came in time.

        Raises:
            Ended: no more will come.
        """
        try:
            frame = self._told.get(timeout=seconds)
        except queue.Empty:
            return None
        if frame is None:
            self._told.put(None)
            raise Ended
        return frame

    def send(self, order: Iterable[Frame]) -> None:
        """Have it train another job too."""
        self._orders.put(list(order))

    def drop(self, job: str) -> None:
        """Have it let go of a job; it answers with "dropped" when nothing of it is left."""
        self.send([Frame("drop", job=job)])

    def go_at(self, share: float) -> None:
        """Have it train for this share of the time, from above 0 to 1."""
        self.send([Frame("pace", {"share": share})])

    def ask_to_stop(self) -> None:
        """Have it save its jobs' states and end them."""
        self.send([Frame("stop")])

    def kill(self) -> None:
        """End it at once and wait until nothing of it is left; safe to call again."""
        if self._killed:
            return
        self._killed = True
        self._orders.put(None)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        self._process.wait(_KILL_SECONDS)
        while self._listener.is_alive():  # it may wait for room in the queue
            with contextlib.suppress(queue.Empty):
                self._told.get(timeout=0.05)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                if pipe is not None:
                    pipe.close()

    def _write(self) -> None:
        """On a thread of its own: a pipe that nobody reads yet must not hold up the heartbeat."""
        pipe = self._process.stdin
        with contextlib.suppress(OSError, ValueError):
            while pipe is not None and (order := self._orders.get()) is not None:
                for frame in order:
                    frames.write(pipe, frame)  # type: ignore[arg-type]
                del order

    def _listen(self) -> None:
        pipe = self._process.stdout
        with contextlib.suppress(OSError, ValueError):
            while pipe is not None and (frame := frames.read(pipe)) is not None:  # type: ignore[arg-type]
                self._told.put(frame)
        self._told.put(None)
