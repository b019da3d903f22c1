"""Who may be timed when: turns taken one after another, on a machine that is seen to be undisturbed.

A matrix product of fixed size is timed before and after each turn. A turn where one of them took over
1.3 times the best of the run is rejected and repeated, a few times; then it is kept, and counted.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch

from bench.contestant import Missing
from bench.process import ContestantError

LIMIT = 1.3
_REPEATS = 3
_QUIET_S = 0.25  # longer than the threads of any contestant spin after their last parallel region


class Referee:
    """Watches the machine over one run.

    Args:
        limit: slowness above which a turn is rejected; infinite, nothing is watched.
    """

    def __init__(self, limit: float = LIMIT) -> None:
        self._limit = limit
        self.turns = self.rejected = self.kept_disturbed = 0
        self._left, self._right = torch.ones(256, 768), torch.ones(768, 3072)
        self.best_s = min(self.calibrate() for _ in range(20))

    def calibrate(self) -> float:
        """Seconds of the product."""
        start = time.perf_counter()
        for _ in range(5):
            self._left @ self._right
        return time.perf_counter() - start

    def undisturbed(self, turn: Callable[[], Any]) -> Any:
        """The result of a turn, taken again while the machine is disturbed."""
        if math.isinf(self._limit):
            return turn()
        for attempt in range(_REPEATS + 1):
            before = self._calm()
            answer = turn()
            self.turns += 1
            if max(before, self._slowness()) <= self._limit:
                return answer
            if attempt < _REPEATS:
                self.rejected += 1
                time.sleep(2**attempt / 2)
        self.kept_disturbed += 1
        return answer

    def watched(self, turn: Callable[[], Any]) -> Any:
        """The result of a turn that is too long to be repeated; one that was disturbed is counted as kept."""
        if math.isinf(self._limit):
            return turn()
        before = self._calm()
        answer = turn()
        self.turns += 1
        after = self._calm()  # what the turn left running ends first
        self.kept_disturbed += max(before, after) > self._limit
        return answer

    def alternate(self, turns: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
        """Answers of each turn: A B C C B A ..., behind one round to warm up; who fails is left out.

        Neighbours stay neighbours, and neither is always the first.
        """
        answers: dict[str, list[Any]] = {name: [] for name in turns}
        for number in range(rounds + 1):
            for name in list(answers) if number % 2 else list(reversed(answers)):
                start = time.perf_counter()
                try:
                    answer = self.undisturbed(turns[name]) if number else turns[name]()
                except (ContestantError, Missing) as error:
                    print(f"  {name}: left out: {error}", flush=True)
                    del answers[name]
                    continue
                if number:
                    answers[name].append(answer)
                print(
                    f"  round {number or 'warm-up'}  {name:32} {time.perf_counter() - start:6.2f} s",
                    flush=True,
                )
        return answers

    def _calm(self) -> float:
        """Slowness once the machine is calm, or what it is after a while."""
        time.sleep(_QUIET_S)
        for _ in range(5):
            slowness = self._slowness()
            if slowness <= self._limit:
                break
            time.sleep(1)
        return slowness

    def _slowness(self) -> float:
        seconds = min(self.calibrate(), self.calibrate())
        self.best_s = min(self.best_s, seconds)
        return seconds / self.best_s
