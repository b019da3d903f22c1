"""Child processes of the service's bench: orders through a pipe, one answer each; asleep in between."""

import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Self

_CONTEXT = multiprocessing.get_context("spawn")
_SLICE_S = 0.005


class Child:
    """A process that answers orders until the block ends; `target` gets its pipe's end and `arguments`."""

    def __init__(self, target: Callable[..., None], *arguments: Any) -> None:
        self._pipe, theirs = _CONTEXT.Pipe()
        self._process = _CONTEXT.Process(target=target, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.close()
        self._process.join(10)
        self._process.kill()

    def ask(self, order: str, *arguments: Any) -> Any:
        """What the order answers.

        Raises:
            RuntimeError: it failed there.
            EOFError: the process ended.
        """
        self._pipe.send((order, *arguments))
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def serve(pipe: Connection, orders: Mapping[str, Callable[..., Any]]) -> None:
    """The child's side: carry orders out until the parent closes the pipe."""
    while True:
        try:
            order, *arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(orders[order](*arguments))
        except Exception as error:  # noqa: BLE001 - the parent raises it
            pipe.send(RuntimeError(f"{order}: {type(error).__name__}: {error}"))


class Neighbour:
    """A process that uses `share` of one core while the block lasts, in slices of milliseconds."""

    def __init__(self, share: float) -> None:
        self._running = _CONTEXT.Event()
        self._process = _CONTEXT.Process(target=_spin, args=(min(share, 1.0), self._running), daemon=True)
        self._before = self._start = 0.0

    def __enter__(self) -> Self:
        self._process.start()
        self._running.wait()  # its imports keep a core busy for seconds
        self._before, self._start = self._used(), time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()

    def cores(self) -> float:
        """What it got of a core since the block began."""
        return (self._used() - self._before) / (time.perf_counter() - self._start)

    def _used(self) -> float:
        return cpu_seconds(self._process.pid)


def cpu_seconds(pid: int | None) -> float:
    """Processor time that a process used until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _spin(share: float, running: Event) -> None:
    """Be as busy as told by the processor's clock: time that others took from it is caught up with."""
    running.set()
    start, used = time.perf_counter(), time.process_time()
    while True:
        while time.process_time() - used < share * (time.perf_counter() - start):
            pass
        time.sleep(_SLICE_S)
