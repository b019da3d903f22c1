"""The child's side of a contestant: answer JSON lines on stdin until it closes, asleep in between.

An order is `{"do": name of a method, ...its arguments}`; the answer is what the method returns,
`{"missing": why}` for what is not there to be measured, or `{"error": what}`. What libraries print goes to
stderr. Needs the standard library alone, because every peer's venv runs it.
"""

import json
import os
import sys
import time
import traceback
from typing import Any

from bench.workload import Workload


class Missing(Exception):
    """What was asked for is not installed or not built."""


def serve(contestant: Any) -> None:
    """Let the parent call the methods of `contestant`."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        order = json.loads(line)
        if "workload" in order:
            order["workload"] = Workload(
                **{**order["workload"], "lengths": tuple(order["workload"]["lengths"])}
            )
        try:
            answer = getattr(contestant, order.pop("do"))(**order) or {}
        except (Missing, ModuleNotFoundError) as error:
            answer = {"missing": str(error)}
        except Exception as error:  # noqa: BLE001 - the parent reports it and goes on without this one
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


class Stopwatch:
    """Seconds since it was made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def __call__(self) -> float:
        """Read it."""
        return time.perf_counter() - self._start
