"""The parent's side of a contestant: its process, its venv, its log, and a deadline for each answer."""

import json
import os
import select
import subprocess
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from bench.contestant import Missing
from bench.workload import Workload

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "build" / "bench"


class ContestantError(Exception):
    """It failed, or did not answer in time; its log says more."""


class Process:
    """One contestant in a process of its own.

    Args:
        name: of its log.
        python: the interpreter of its venv.
        module: below `bench.contestants`.
        threads: that it may use.

    Raises:
        Missing: its venv is not there.
    """

    def __init__(self, name: str, python: Path, module: str, threads: int) -> None:
        if not python.exists():
            raise Missing("not installed")
        self.name = name
        logs = BUILD / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        self._log = (logs / f"{name.replace(' ', '-')}.log").open("w")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        self._child = subprocess.Popen(
            [python, "-m", f"bench.contestants.{module}"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def ask(self, do: str, timeout_s: float = 600, **arguments: Any) -> dict[str, Any]:
        """Have it do something, and wait for the answer.

        Raises:
            Missing: it has not what this needs.
            ContestantError: it failed, ended, or took longer than `timeout_s`.
        """
        if isinstance(workload := arguments.get("workload"), Workload):
            arguments["workload"] = asdict(workload)
        try:
            print(json.dumps({"do": do, **arguments}), file=self._child.stdin, flush=True)
            ready, _, _ = select.select([self._child.stdout], [], [], timeout_s)
            line = self._child.stdout.readline() if ready else ""
        except (BrokenPipeError, ValueError):  # it has gone, or was closed when it did not answer in time
            line = ""
        if not line:
            self.close()
            raise ContestantError(f"no answer to {do!r}; see {self._log.name}")
        answer = json.loads(line)
        if "missing" in answer:
            raise Missing(answer["missing"])
        if "error" in answer:
            raise ContestantError(answer["error"])
        return answer

    def cpu_seconds(self) -> float:
        """Processor time that it used until now."""
        fields = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        if self._child.poll() is None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()
            try:
                self._child.wait(5)
            except subprocess.TimeoutExpired:
                self._child.kill()
                self._child.wait()
        self._child.stdout.close()
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
