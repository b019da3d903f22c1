"""Many streams at the same moment, for the demo: started together, shown as they grow, measured.

Knows nothing of users; refuses to start a stream before all of them can start.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from service.cli.generation import stream_text
from service.cli.terminal import clean, plain

if TYPE_CHECKING:
    from service.cli.connection import Connection

REFRESH_SECONDS = 0.1
SHOWN_TAIL = 90


@dataclass(slots=True, eq=False)
class Stream:
    """One request and what has come of it; times are seconds since all were started."""

    model: str
    prompt: str
    max_tokens: int
    connection: "Connection"
    text: str = ""
    pieces: int = 0
    first: float | None = None
    ended: float | None = None
    error: Exception | None = None

    def run(self, started: Callable[[], float]) -> None:
        """Ask and read to the end; a failure is kept, not raised, because a thread runs this."""
        body = {
            "model": self.model,
            "prompt": self.prompt,
            "max_tokens": self.max_tokens,
            "temperature": 0.0,
            "frequency_penalty": 0.6,  # a model this small repeats itself without it
        }
        try:
            for _, piece in stream_text(self.connection, body):
                self.first = started() if self.first is None else self.first
                self.text += piece
                self.pieces += 1
        except Exception as error:  # noqa: BLE001  (the outermost edge of a thread; raised again after the join)
            self.error = error
        finally:
            self.ended = started()

    def line(self) -> str:
        """The stream in one line, when it has ended."""
        first = "-" if self.first is None else f"{self.first:.2f} s"
        return (
            f"{self.model:<20} {self.pieces:>3} pieces  first after {first}  ended after {self.ended:.2f} s"
        )


def ask_together(streams: Sequence[Stream], console: Console) -> int:
    """Run all streams at once; the largest number that were receiving at the same moment.

    Raises:
        CommandError: a stream failed (or whatever else its thread met).
    """
    barrier = threading.Barrier(len(streams) + 1)
    origin: list[float] = []

    def started() -> float:
        return time.monotonic() - origin[0]

    def run(stream: Stream) -> None:
        barrier.wait()
        stream.run(started)

    threads = [threading.Thread(target=run, args=(stream,), daemon=True) for stream in streams]
    for thread in threads:
        thread.start()
    origin.append(time.monotonic())
    barrier.wait()
    _show(streams, threads, console)
    for stream in streams:
        if stream.error is not None:
            raise stream.error
    return _most_at_once(streams)


def _show(streams: Sequence[Stream], threads: Sequence[threading.Thread], console: Console) -> None:
    if console.is_terminal:
        with Live(console=console, refresh_per_second=10, transient=True) as live:
            while any(thread.is_alive() for thread in threads):
                live.update(_growing(streams))
                time.sleep(REFRESH_SECONDS)
    else:
        shown: set[Stream] = set()
        while len(shown) < len(streams):
            for stream in streams:
                if stream.ended is not None and stream not in shown:
                    shown.add(stream)
                    console.print(plain(stream.line()))
            time.sleep(REFRESH_SECONDS)
    for thread in threads:
        thread.join()


def _growing(streams: Sequence[Stream]) -> Table:
    table = Table.grid(padding=(0, 1))
    for stream in streams:
        text = clean(stream.text).replace("\n", " / ")
        table.add_row(plain(stream.model), plain(text[-SHOWN_TAIL:]))
    return table


def _most_at_once(streams: Sequence[Stream]) -> int:
    open_now = most = 0
    edges = [(s.first, 1) for s in streams if s.first is not None]
    edges += [(s.ended, -1) for s in streams if s.first is not None and s.ended is not None]
    for _, change in sorted(edges):
        open_now += change
        most = max(most, open_now)
    return most
