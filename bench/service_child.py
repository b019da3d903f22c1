"""Child processes of the service's bench: orders through a pipe, one answer each; asleep in between."""

import multiprocessing
import time
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
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
        self._process = _CONTEXT.Process(target=_spin, args=(min(share, 1.0),), daemon=True)

    def __enter__(self) -> Self:
        self._process.start()
        time.sleep(1.0)  # until it runs
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()


def _spin(share: float) -> None:
    while True:
        start = time.perf_counter()
        while time.perf_counter() - start < _SLICE_S * share:
            pass
        time.sleep(_SLICE_S * (1 - share))
