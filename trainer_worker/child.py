"""The training process: orders come in on stdin, frames go out on stdout; it opens neither database nor key.

It dies with its worker: stdin ends, and on Linux the kernel kills it too. It runs behind everything else
on the machine (nice 10), and leaves no core dump with somebody's rows.
"""

import contextlib
import ctypes
import os
import queue
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import structlog

from trainer_worker import frames
from trainer_worker.faults import place_of
from trainer_worker.frames import Frame
from trainer_worker.pace import Pace

if TYPE_CHECKING:
    from trainer_worker.shop import Shop

_NICE = 10
_PR_SET_PDEATHSIG = 1
_CRASHED = 70  # EX_SOFTWARE
_ALIVE_SECONDS = 5.0  # a long look tells nothing else


class PipeReport:
    """Sends what a run tells to the worker, until the job is dropped; see `report.Report`.

    `stop` is set when all are to save their states and end.
    """

    def __init__(self, pipe: BinaryIO, job: str, stop: threading.Event) -> None:
        self._pipe, self.job, self._stop, self._dropped = pipe, job, stop, threading.Event()

    def progress(self, fields: dict[str, Any]) -> None:
        """See `Report`."""
        self.send(Frame("progress", fields))

    def resolved(self, fields: dict[str, Any]) -> None:
        """See `Report`."""
        self.send(Frame("resolved", fields))

    def event(
        self,
        level: Literal["info", "warn"],
        type: Literal["message", "metrics"],  # noqa: A002 - the field's name
        message: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        """See `Report`."""
        self.send(Frame("event", {"level": level, "type": type, "message": message, "data": data}))

    def checkpoint(self, update: int, payload: bytes) -> None:
        """See `Report`."""
        self.send(Frame("checkpoint", {"update": update}, payload))

    def best(self, fields: dict[str, Any], payload: bytes) -> None:
        """See `Report`."""
        self.send(Frame("best", fields, payload))

    def stopping(self) -> bool:
        """See `Report`."""
        return self._stop.is_set()

    def drop(self) -> None:
        """Tell nothing any more."""
        self._dropped.set()

    def send(self, frame: Frame) -> None:
        """Put a frame on the pipe."""
        if not self._dropped.is_set():
            self.last(frame)

    def last(self, frame: Frame) -> None:
        """Put a frame on the pipe, even of a job that was dropped."""
        frames.write(self._pipe, replace(frame, job=self.job))


def main() -> None:
    """Train what comes in: one job, or as many as the worker sends if the first is joint."""
    _settle_in()
    orders, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between frames
    inbox: queue.SimpleQueue[_Taken] = queue.SimpleQueue()
    pace = Pace()
    threading.Thread(target=_obey, args=(orders, out, inbox, pace), daemon=True).start()
    try:
        _train(inbox, out, pace)
    except BrokenPipeError:
        os._exit(0)  # the worker is gone; nothing is left to do or to flush
    except Exception as error:  # noqa: BLE001 - told by kind and place; its text may hold rows
        _say(error)
        os._exit(_CRASHED)  # the thread that reads orders holds stdin, which an ordinary exit would wait for
    os._exit(0)


@dataclass(frozen=True, slots=True)
class _Taken:
    """A job's order without its "begin"; none if the job is to be dropped."""

    report: PipeReport
    order: list[Frame] | None


def _settle_in() -> None:
    os.nice(_NICE)
    for sent in (signal.SIGINT, signal.SIGTERM):  # they reach the worker too, which asks for a checkpoint
        signal.signal(sent, signal.SIG_IGN)
    # By hand, as its worker did before it (`core_dumps`): the store is not loaded yet.
    most = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
    with contextlib.suppress(
        OSError
    ):  # Linux: when memory runs out, this process goes before any that serves
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _obey(orders: BinaryIO, out: BinaryIO, inbox: "queue.SimpleQueue[_Taken]", pace: Pace) -> None:
    """Sort what the worker sends; stop when told to; die at once when the worker is gone."""
    stop, parts = threading.Event(), dict[str, list[Frame]]()
    reports: dict[str, PipeReport] = {}
    while (frame := frames.read(orders)) is not None:
        if frame.kind == "stop":
            stop.set()
        elif frame.kind == "pace":
            pace.take(frame.fields["share"])
        elif frame.kind == "begin":
            reports[frame.job] = PipeReport(out, frame.job, stop)
            inbox.put(_Taken(reports[frame.job], parts.pop(frame.job)))
        elif frame.kind == "drop":
            reports[frame.job].drop()
            inbox.put(_Taken(reports.pop(frame.job), None))
        else:
            parts.setdefault(frame.job, []).append(frame)
        pace.wake()
    os._exit(0)


def _train(inbox: "queue.SimpleQueue[_Taken]", out: BinaryIO, pace: Pace) -> None:
    # Late, so that the order is out of the worker's hands before torch is loaded.
    first = inbox.get()
    from prefix_store.logs import write_logs  # noqa: PLC0415
    from trainer_worker.shop import Shop  # noqa: PLC0415

    write_logs("text" if os.environ.get("PREFIX_LOG_FORMAT") == "text" else "json")
    frames.write(out, Frame("ready"))  # from here on it is a job that it may die of
    if first.order is None:
        return
    shop = Shop(first.order[0].fields)
    joint = bool(first.order[0].fields["joint"])
    _take(shop, first)
    del first
    told = time.monotonic()
    while joint or shop.busy:
        while not (inbox.empty() and shop.busy):
            _take(shop, inbox.get())
        began = time.monotonic()
        for report, error in shop.step():
            _say(error)
            if not joint:
                raise error
            report.send(Frame("crashed"))
            del report, error
        if time.monotonic() - told > _ALIVE_SECONDS:
            told = time.monotonic()
            frames.write(out, Frame("alive"))
        pace.rest(time.monotonic() - began)


def _take(shop: "Shop", taken: _Taken) -> None:
    if taken.order is not None:
        shop.join(taken.report, taken.order)
    else:
        shop.drop(taken.report)


def _say(error: Exception) -> None:
    told = getattr(error, "__notes__", None) or [place_of(error)]
    structlog.get_logger("trainer_worker").error("training.failed", at=told[0])


if __name__ == "__main__":
    main()
