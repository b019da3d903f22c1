"""Training jobs as they run: polled, shown as live bars on a terminal, else as plain lines.

Knows a job's progress fields; refuses to know who trains or why.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from service.cli.terminal import clean, duration, number, plain

if TYPE_CHECKING:
    from service.cli.connection import Connection, Json

POLL_SECONDS = 0.5
PLAIN_LINE_SECONDS = 5.0
OUTAGE_SECONDS = 60.0  # a service that restarts is waited for this long
ENDED = frozenset({"succeeded", "failed", "cancelled"})


@dataclass(frozen=True, slots=True)
class Watched:
    """A job, the name to show for it, and the connection whose key may see it."""

    label: str
    job_id: str
    connection: "Connection"


@dataclass(frozen=True, slots=True)
class JobView:
    """What is shown of a job."""

    label: str
    status: str
    update: int = 0
    updates: int | None = None
    train_loss: float | None = None
    held_out_loss: float | None = None
    seconds_left: float | None = None

    @property
    def ended(self) -> bool:
        """Whether the job will not change any more."""
        return self.status in ENDED


def view_of(label: str, job: "Json") -> JobView:
    """Read a job as the service answers it."""
    progress: dict[str, Any] = job.get("progress") or {}
    fields = ("updates", "train_loss", "held_out_loss", "seconds_left")
    return JobView(
        label,
        job["status"],
        progress.get("update") or 0,
        **{field: progress.get(field) for field in fields},
    )


def watch(
    jobs: Sequence[Watched],
    console: Console,
    check: Callable[[], None] = lambda: None,
    poll_seconds: float = POLL_SECONDS,
) -> list["Json"]:
    """Show the jobs until all have ended; the ended jobs, in the order given.

    `check` is called at every turn and may raise to end the watch.
    """
    show = _Bars(console) if console.is_terminal else _Lines(console)
    last: dict[str, Json] = {}
    with show:
        for job in _polled(jobs, check, poll_seconds):
            watched, answer = job
            last[watched.job_id] = answer
            show.update(view_of(watched.label, answer))
    return [last[watched.job_id] for watched in jobs]


def _polled(
    jobs: Sequence[Watched], check: Callable[[], None], poll_seconds: float
) -> Iterator[tuple[Watched, "Json"]]:
    open_jobs = list(jobs)
    while open_jobs:
        check()
        still_open = []
        for watched in open_jobs:
            answer = patient(lambda w=watched: w.connection.get(f"/v1/fine_tuning/jobs/{w.job_id}"))  # type: ignore[misc]
            yield watched, answer
            if answer["status"] not in ENDED:
                still_open.append(watched)
        open_jobs = still_open
        if open_jobs:
            time.sleep(poll_seconds)


def patient(ask: Callable[[], "Json"], outage_seconds: float = OUTAGE_SECONDS) -> "Json":
    """Ask again while the service restarts or is busy, for `outage_seconds` at most."""
    from service.cli.connection import Refused, Unreachable  # noqa: PLC0415

    give_up = time.monotonic() + outage_seconds
    while True:
        try:
            return ask()
        except (Refused, Unreachable) as error:
            lasting = isinstance(error, Refused) and error.status < 500 and error.status != 429
            if lasting or time.monotonic() > give_up:
                raise
            time.sleep(1.0)


class _Bars:
    """A live bar a job."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.fields[label]}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("train {task.fields[train]}"),
            TextColumn("held-out {task.fields[held_out]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._bars: dict[str, Any] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, view: JobView) -> None:
        if view.label not in self._bars:
            self._bars[view.label] = self._progress.add_task(
                "", total=view.updates, label=clean(view.label), train="-", held_out="-", left=""
            )
        self._progress.update(
            self._bars[view.label],
            completed=view.update,
            total=view.updates,
            train=number(view.train_loss),
            held_out=number(view.held_out_loss),
            left=f"{duration(view.seconds_left)} left" if view.status == "running" else view.status,
        )


class _Lines:
    """A line a job when its state changes, and every few seconds while it runs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, view: JobView) -> None:
        status, at = self._shown.get(view.label, ("", 0.0))
        now = time.monotonic()
        if status == view.status and (view.status != "running" or now - at < PLAIN_LINE_SECONDS):
            return
        self._shown[view.label] = (view.status, now)
        self._console.print(plain(line_of(view)))


def line_of(view: JobView) -> str:
    """A job as one line."""
    parts = [f"{view.label:<20} {view.status:<10}"]
    if view.updates:
        parts.append(f"update {view.update} of {view.updates}")
        parts.append(f"train {number(view.train_loss)}  held-out {number(view.held_out_loss)}")
    if view.status == "running" and view.seconds_left is not None:
        parts.append(f"{duration(view.seconds_left)} left")
    return "  ".join(parts).rstrip()
