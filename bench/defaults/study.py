"""Make the runs that have no result yet, several processes side by side, until the time is over."""

import queue
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.defaults.results import Results, work
from bench.defaults.trials import Trial, autos
from bench.process import Process
from bench.run import MAIN

LONGEST_SECONDS = 3600.0  # of one run


class Study:
    """The runs of one call.

    Args:
        results: where they are kept.
        load: what each process loads, see `bench.contestants.train_trial.Trials.load`.
        workers: runs side by side, each in a process of its own with one thread.
    """

    def __init__(self, results: Results, load: dict[str, Any], workers: int) -> None:
        self._results, self._load, self._workers = results, load, workers
        self._base: dict[str, Any] = {}
        self._keeping = threading.Lock()
        self._waiting: queue.SimpleQueue[Trial] = queue.SimpleQueue()
        self._made = self._left = 0
        self._speed = self._until = 0.0
        self._failed: list[Exception] = []

    def make(self, trials: Sequence[Trial], minutes: float) -> None:
        """Run what is not finished; none begins that would end later than in so many minutes, by the estimate.

        Raises:
            OtherBase: the results are of another base; nothing was run.
            ContestantError: a process failed; what was finished is kept. So of whatever else went wrong.
        """
        began = time.monotonic()
        self._until = began + 60 * minutes
        with self._process(0) as process:
            self._results.require(self._base["fingerprint"])
            self._wait_for(trials, minutes)
            numbers = range(1, self._workers)
            others = [threading.Thread(target=self._side, args=(n,), daemon=True) for n in numbers]
            for other in others:
                other.start()
            self._side(0, process)
            for other in others:
                other.join()
        print(f"{self._made} runs made, {self._left} left, {(time.monotonic() - began) / 60:.1f} minutes")
        if self._failed:
            raise self._failed[0]

    def _process(self, number: int) -> Process:
        process = Process(f"defaults {number}", MAIN, "train_trial", 1)
        self._base = process.ask("load", **self._load)
        return process

    def _wait_for(self, trials: Sequence[Trial], minutes: float) -> None:
        """Line up what is not finished, and say how long it takes."""
        done = self._results.keys()
        missing = [trial for trial in trials if self._key(trial) not in done]
        for trial in missing:
            self._waiting.put(trial)
        self._left, self._speed = len(missing), self._results.speed()
        takes = sum(map(self._seconds, missing)) / self._workers / 60
        print(
            f"{len(trials)} runs, {len(trials) - len(missing)} of them finished before; the other {len(missing)} take about "
            f"{takes:.0f} minutes in {self._workers} processes, the budget is {minutes:g}",
            flush=True,
        )

    def _key(self, trial: Trial) -> str:
        return trial.key(self._base["fingerprint"])

    def _seconds(self, trial: Trial) -> float:
        return work(trial) / self._speed

    def _side(self, number: int, process: Process | None = None) -> None:
        try:
            with process or self._process(number) as own:
                self._run_all(own)
        except Exception as error:  # noqa: BLE001 - raised when all have ended
            self._failed.append(error)

    def _run_all(self, process: Process) -> None:
        while not self._failed:
            try:
                trial = self._waiting.get_nowait()
            except queue.Empty:
                return
            if time.monotonic() + self._seconds(trial) > self._until:
                continue  # a shorter one may still fit
            asked = asdict(trial)
            part = asked.pop("part")
            found = process.ask("run", LONGEST_SECONDS, **asked)
            self._keep(trial, {"part": part, **asked, "work": work(trial), **found})

    def _keep(self, trial: Trial, found: dict[str, Any]) -> None:
        auto = None if trial.settings else autos()
        with self._keeping:
            self._results.append({"key": self._key(trial), **self._base, "auto": auto, **found})
            self._made, self._left = self._made + 1, self._left - 1
            told = f"{trial.part} {trial.dataset}, {trial.examples or 'all'} examples, seed {trial.seed}"
            ended = (
                f"loss {found['loss']:.3f}, {found['seconds']:.0f} s" if "loss" in found else found["refused"]
            )
            print(f"{told}: {ended}; {self._left} left", file=sys.stderr)
