"""Where a section leaves what it measured, one JSON file each, and how reports and plots read it.

Plain Python: whoever only reads results loads no torch.
"""

import itertools
import json
import os
import subprocess
from argparse import ArgumentParser, ArgumentTypeError
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from bench.process import BUILD, ROOT
from bench.table import Row
from bench.whole import whole

ENGINE = ("contest", "mixing", "steps", "streams", "memory")
SERVICE = ("sweep", "fair", "cold", "beside", "registry")
TRAINING = {"steps": "training", "to-loss": "training-to-loss"}  # rows of bench.training, and their files
COMMANDS = (
    {name: f"python -m bench --rows {name}" for name in ENGINE}
    | {f"service-{name}": f"python -m bench.service --rows {name}" for name in SERVICE}
    | {section: f"python -m bench.training --rows {name}" for name, section in TRAINING.items()}
)


@dataclass(frozen=True, slots=True)
class Section:
    """What one section left behind.

    Attributes:
        rows: lines of the table.
        raw: all that was measured; what is in it is the section's own affair.
        seconds: that it took.
        machine: on which it ran, and with how many threads.
        commit: of the code that ran; see `commit`.
        kept_disturbed: turns that are in the figures though the machine was disturbed.
    """

    rows: list[str]
    raw: dict[str, Any]
    seconds: float
    machine: str
    commit: str
    kept_disturbed: int = 0


def folder(*, quick: bool, base: str = "", device: str = "cpu") -> Path:
    """Where the results of a run lie; those of a quick one, another base or another device never among the others."""
    commit()  # of the code as it is when the run begins
    apart = [Path(base).name] if base else []
    apart += [device.replace(":", "-")] if device != "cpu" else []
    place = BUILD / "-".join(["quick" if quick else "results", *apart])
    place.mkdir(parents=True, exist_ok=True)
    return place


def keep(
    place: Path,
    name: str,
    rows: list[Row],
    raw: dict[str, Any],
    seconds: float,
    kept_disturbed: int = 0,
    device: str = "cpu",
) -> list[str]:
    """Write a section's file, whole or not at all; the lines of its rows.

    `kept_disturbed`: turns that its figures hold though the machine was disturbed. `device`: that computed.
    """
    lines = [row.markdown() for row in rows]
    found = {"rows": lines, "seconds": seconds, "machine": machine(device), "commit": commit(), "raw": raw}
    found["kept_disturbed"] = kept_disturbed
    with whole(place / f"{name}.json") as making:
        making.write_text(json.dumps(found, indent=1))
    return lines


def read(place: Path, name: str) -> Section | None:
    """A section's file; None if it was not measured."""
    path = place / f"{name}.json"
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    noted = {name: found.get(name, f"{name} not noted") for name in ("machine", "commit")}
    kept = found.get("kept_disturbed", 0)
    return Section(found["rows"], found["raw"], found["seconds"], **noted, kept_disturbed=kept)


@cache
def commit() -> str:
    """The commit of this code, and whether files differ from it; `commit not noted` without git or its folder."""
    try:
        top, name = _git("rev-parse", "--show-toplevel", "HEAD").split()
        # But for documents, where a run writes its tables and plots.
        changed = _git("status", "--porcelain", "--", ".", ":!docs")
    except (OSError, subprocess.CalledProcessError, ValueError):
        return "commit not noted"
    if Path(top).resolve() != ROOT:  # the code lies in somebody else's repository
        return "commit not noted"
    return f"commit {name[:12]}{' with changes' if changed else ''}"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def machine(device: str = "cpu") -> str:
    """The accelerator, the processor as the kernel calls it, how wide it computes, the cores it may use, its threads.

    Family and model are told too: hosts of virtual machines leave the generation out of the name.
    """
    found = {}
    with open("/proc/cpuinfo") as lines:  # noqa: PTH123 - read up to the first processor's end
        for line in itertools.takewhile(str.strip, lines):
            name, _, value = line.partition(":")
            found[name.strip()] = value.strip()
    flags = found.get("flags", "").split()
    width = next((f", {name}" for name in ("avx512_vnni", "avx512f", "avx2") if name in flags), "")
    told = os.environ.get("OMP_NUM_THREADS")
    cores = f", {len(os.sched_getaffinity(0))} cores"
    made = f" (family {found['cpu family']}, model {found['model']})" if "cpu family" in found else ""
    return (
        _accelerator(device)
        + found.get("model name", "?")
        + made
        + width
        + cores
        + (f", OMP_NUM_THREADS={told}" if told else "")
    )


def _accelerator(device: str) -> str:
    if device == "cpu":
        return ""
    import torch  # noqa: PLC0415 - who only reads results loads no torch

    return f"{torch.get_device_module(device).get_device_name(device)}, "


def names(text: str, known: tuple[str, ...]) -> tuple[str, ...]:
    """Names of sections with commas in between.

    Raises:
        ArgumentTypeError: one of them is not known.
    """
    given = tuple(filter(None, text.split(",")))
    if unknown := set(given) - set(known):
        raise ArgumentTypeError(f"no section {', '.join(sorted(unknown))}; there are {','.join(known)}")
    return given


def choose_rows(parser: ArgumentParser, known: tuple[str, ...]) -> None:
    """Give a command `--rows`; what is not asked for is left as it is."""
    shown = f"of {','.join(known)}; all if not given"
    parser.add_argument("--rows", type=partial(names, known=known), default=known, help=shown)


def choose_device(parser: ArgumentParser) -> None:
    """Give a command `--device`."""
    parser.add_argument("--device", default="cpu", help="on which everybody computes, as torch calls it")
