"""The training process: an order comes in on stdin, frames go out on stdout; it opens neither database nor key.

It dies with its worker: stdin ends, and on Linux the kernel kills it too. It runs behind everything else
on the machine (nice 10), and leaves no core dump with somebody's rows.
"""

import contextlib
import ctypes
import os
import resource
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from trainer_worker import frames
from trainer_worker.faults import place_of
from trainer_worker.frames import Frame
from trainer_worker.refusal import Refused
from trainer_worker.report import Stopped

if TYPE_CHECKING:
    from trainer_worker.training import Trained

_NICE = 10
_PR_SET_PDEATHSIG = 1
_CRASHED = 70  # EX_SOFTWARE


class PipeReport:
    """Sends what a run tells to the worker; see `report.Report`."""

    def __init__(self, pipe: BinaryIO) -> None:
        self._pipe, self._stop = pipe, threading.Event()

    def progress(self, fields: dict[str, Any]) -> None:
        """See `Report`."""
        self.send(Frame("progress", fields))

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

    def stopping(self) -> bool:
        """See `Report`."""
        return self._stop.is_set()

    def stop(self) -> None:
        """Make `stopping` true."""
        self._stop.set()

    def send(self, frame: Frame) -> None:
        """Put a frame on the pipe."""
        frames.write(self._pipe, frame)


def main() -> None:
    """Train the one job that comes in."""
    _settle_in()
    orders, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not end up between frames
    report = PipeReport(out)
    taken = _taken(orders)
    if taken is None:
        return
    threading.Thread(target=_obey, args=(orders, report), daemon=True).start()
    try:
        report.send(_outcome(taken, report))
    except BrokenPipeError:
        os._exit(0)  # the worker is gone; nothing is left to do or to flush
    except Exception as error:  # noqa: BLE001 - told by kind and place; its text may hold rows
        sys.stderr.write(f"training failed: {place_of(error)}\n")
        sys.stderr.flush()
        os._exit(_CRASHED)  # the thread that reads orders holds stdin, which an ordinary exit would wait for


def _settle_in() -> None:
    os.nice(_NICE)
    for sent in (signal.SIGINT, signal.SIGTERM):  # they reach the worker too, which asks for a checkpoint
        signal.signal(sent, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(
        OSError
    ):  # Linux: when memory runs out, this process goes before any that serves
        Path("/proc/self/oom_score_adj").write_text("1000")
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _taken(orders: BinaryIO) -> list[Frame] | None:
    taken: list[Frame] = []
    while (frame := frames.read(orders)) is not None:
        if frame.kind == "begin":
            return taken
        taken.append(frame)
    return None


def _obey(orders: BinaryIO, report: PipeReport) -> None:
    """Stop when told to; die at once when the worker is gone."""
    while (frame := frames.read(orders)) is not None:
        if frame.kind == "stop":
            report.stop()
    os._exit(0)


def _outcome(taken: list[Frame], report: PipeReport) -> Frame:
    # Late, so that the order is out of the worker's hands before torch is loaded.
    from prefix_engine.base import BaseError, load_base  # noqa: PLC0415
    from trainer_worker.order import order_of  # noqa: PLC0415
    from trainer_worker.training import Training  # noqa: PLC0415

    fields = taken[0].fields
    _use_threads(fields["threads"])
    try:
        base = load_base(fields["base"])
    except BaseError:
        return Frame("no_base")
    if fields["base_fingerprint"] not in {"", base.fingerprint}:
        message = f"the job is for another base model than {base.name}; create it again"
        return _refused(Refused("base_mismatch", message, "model"))
    try:
        return _trained(Training(base, order_of(taken), report).train())
    except Refused as error:
        return _refused(error)
    except Stopped:
        return Frame("stopped")


def _refused(error: Refused) -> Frame:
    return Frame("refused", {"code": error.code, "message": error.message, "param": error.param})


def _trained(trained: "Trained") -> Frame:
    told = {
        "m": trained.prefix.m,
        "position_offset": trained.prefix.position_offset,
        "template": trained.template.to_json(),
        "metrics": trained.metrics,
        "trained_tokens": trained.trained_tokens,
    }
    return Frame("trained", told, trained.prefix.to_bytes())


def _use_threads(count: int | None) -> None:
    import torch  # noqa: PLC0415 - see _outcome

    if count is not None:
        torch.set_num_threads(count)


if __name__ == "__main__":
    main()
