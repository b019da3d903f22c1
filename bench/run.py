"""What one run of the bench shares: shapes, rounds, the referee, and how contestants are started."""

import math
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.model import model_folder
from bench.process import ROOT, Process
from bench.referee import LIMIT, Referee
from bench.workload import SHAPES

MAIN = Path(sys.executable)


def venv(peer: str) -> Path:
    """The interpreter of a peer's own venv."""
    return ROOT / "build" / "peers" / peer / "bin" / "python"


@dataclass
class Run:
    """One run of the bench.

    Attributes:
        quick: a tiny shape and one round, to show that everything works; its figures mean nothing.
        rounds: timed rounds of a contest.
        peers: names of the installed peers that may take part; None is all that are installed.
        device: on which the contestants compute, as torch calls it.
    """

    quick: bool
    rounds: int
    peers: frozenset[str] | None = None
    device: str = "cpu"
    referee: Referee = field(init=False)

    def __post_init__(self) -> None:
        self.referee = Referee(math.inf if self.quick else LIMIT)

    @property
    def shape(self) -> dict[str, int]:
        """Of the model; see `SHAPES`."""
        return SHAPES["tiny" if self.quick else "124m"]

    @property
    def folder(self) -> str:
        """Of the model."""
        return str(model_folder("tiny" if self.quick else "124m"))

    @property
    def threads(self) -> int:
        """That every contestant may use."""
        return int(os.environ.get("OMP_NUM_THREADS", "0")) or len(os.sched_getaffinity(0))

    def say(self, line: str) -> None:
        """Print progress at once."""
        print(line, flush=True)

    def engine(self, name: str = "engine", **settings: Any) -> Process:
        """This project's engine in a process of its own; see `contestants.engine.engine_config`."""
        return self.start(name, MAIN, "engine", **settings)

    def start(self, name: str, python: Path, module: str, **settings: Any) -> Process:
        """A contestant with the model loaded.

        Raises:
            Missing: not installed, or not built.
            ContestantError: it did not start; the log says why.
        """
        process = Process(name, python, module, self.threads)
        try:
            process.ask("load", folder=self.folder, device=self.device, **settings)
        except Exception:
            process.close()
            raise
        return process
