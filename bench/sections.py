"""Sections of a bench, one after another: each is kept as it ends, and one that fails does not stop the others."""

import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.referee import Referee
from bench.results import keep
from bench.table import HEAD, Row


@dataclass(frozen=True, slots=True)
class Planned:
    """One part of a bench.

    Attributes:
        file: under which its results are kept.
        measure: its rows, and all that was measured.
        referee: of its turns.
    """

    file: str
    measure: Callable[[], tuple[list[Row], dict[str, Any]]]
    referee: Referee


def forget(files: Iterable[str], place: Path) -> None:
    """Remove what an earlier run left: nothing of it is of this one, though this one should end before its turn."""
    for file in files:
        (place / f"{file}.json").unlink(missing_ok=True)


def measure_all(
    sections: Mapping[str, Planned], place: Path, device: str = "cpu"
) -> tuple[list[str], list[str]]:
    """The lines of their table, and the names of those that failed, whose traces are on standard error."""
    lines, failed = [HEAD], []
    forget([section.file for section in sections.values()], place)
    for name, section in sections.items():
        print(f"== {name}", flush=True)
        start, kept = time.perf_counter(), section.referee.kept_disturbed
        try:
            rows, raw = section.measure()
        except Exception:  # noqa: BLE001 - the other sections are measured all the same
            traceback.print_exc()
            failed.append(name)
            continue
        seconds = time.perf_counter() - start
        lines += keep(place, section.file, rows, raw, seconds, section.referee.kept_disturbed - kept, device)
        print(f"== {name}: {seconds:.0f} s", flush=True)
    return lines, failed


def end(failed: list[str], *, quick: bool) -> None:
    """The last words of a bench; its exit status tells of sections that failed."""
    if quick:
        print("--quick shows that the bench works; its figures mean nothing")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")
