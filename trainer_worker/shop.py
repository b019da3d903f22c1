"""What goes on in the training process: orders become jobs over one resident base, ends become frames."""

import gc
from collections.abc import Mapping
from typing import Any, Protocol

import torch

from prefix_engine.base import Base, load_base
from prefix_engine.checkpoint import BaseError
from trainer_worker.frames import Frame
from trainer_worker.order import order_of
from trainer_worker.refusal import Refused
from trainer_worker.report import Report, Stopped
from trainer_worker.run import Steps
from trainer_worker.together import Together
from trainer_worker.training import Trained, Training


class JobReport(Report, Protocol):
    """A report of one job of the process."""

    job: str

    def send(self, frame: Frame) -> None:
        """Tell the worker, unless the job was dropped."""

    def last(self, frame: Frame) -> None:
        """Tell the worker, whatever was."""


class Shop:
    """The jobs that are trained together; `head` are the fields of the first order's first frame."""

    def __init__(self, head: Mapping[str, Any]) -> None:
        if head["threads"] is not None:
            torch.set_num_threads(head["threads"])
        self._base = _loaded(head["base"], head["device"])
        self._together: Together[Trained] | None = None if self._base is None else Together(self._base)
        self._reports: dict[str, JobReport] = {}

    @property
    def busy(self) -> bool:
        """Whether a job is left."""
        return bool(self._reports)

    def join(self, report: JobReport, taken: list[Frame]) -> None:
        """Take a job in; `taken` is emptied."""
        base, fingerprint = self._base, taken[0].fields["base_fingerprint"]
        if base is None or self._together is None:
            report.send(Frame("no_base"))
        elif fingerprint not in {"", base.fingerprint}:
            message = f"the job is for another base model than {base.name}; create it again"
            report.send(_refused(Refused("base_mismatch", message, "model")))
        else:
            self._reports[report.job] = report
            self._together.join(report.job, _job(base, taken, report))

    def drop(self, report: JobReport) -> None:
        """Let go of a job, and say so when nothing of it is left."""
        self._reports.pop(report.job, None)
        if self._together is not None:
            self._together.drop(report.job)
        gc.collect()  # "nothing is left" must not wait for the collector's turn
        report.last(Frame("dropped"))

    def step(self) -> list[tuple[JobReport, Exception]]:
        """Move every job on, see `Together.step`, and tell the ends; returns those that are nobody's doing."""
        faults: list[tuple[JobReport, Exception]] = []
        ended = {} if self._together is None else self._together.step()
        for job, end in ended.items():
            report = self._reports.pop(job)
            if isinstance(end, Trained):
                for name, content in end.files.items():
                    report.send(Frame("file", {"name": name}, content))
                report.send(_trained(end))
            elif isinstance(end, Refused):
                report.send(_refused(end))
            elif isinstance(end, Stopped):
                report.send(Frame("stopped"))
            else:
                faults.append((report, end))
        return faults


def _job(base: Base, taken: list[Frame], report: Report) -> Steps[Trained]:
    order = order_of(taken)
    taken.clear()
    return (yield from Training(base, order, report).steps())


def _loaded(name: str, device: str | None) -> Base | None:
    try:
        return load_base(name, device)
    except BaseError:
        return None


def _refused(error: Refused) -> Frame:
    return Frame("refused", {"code": error.code, "message": error.message, "param": error.param})


def _trained(trained: Trained) -> Frame:
    told = {
        "m": trained.prefix.m,
        "position_offset": trained.prefix.position_offset,
        "template": trained.template.to_json(),
        "metrics": trained.metrics,
        "trained_tokens": trained.trained_tokens,
    }
    return Frame("trained", told, trained.prefix.to_bytes())
