"""How tests wait for what comes by itself: long enough for a machine that does much else."""

import contextlib
import itertools
import threading
import time

PATIENCE_S = 120


def wait_until(condition, seconds=PATIENCE_S):
    """What it says when it holds; a test that waits in vain fails."""
    give_up = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    return found


@contextlib.contextmanager
def lasting(engine, quick=60):
    """Within the block no text of many more tokens ends: behind some quick steps of the engine come very slow ones."""
    runner, count = engine._loop._runner, itertools.count()
    step = runner.step

    def slow(plan):
        time.sleep(0.02 if next(count) < quick else 0.5)
        return step(plan)

    runner.step = slow
    try:
        yield
    finally:
        runner.step = step


class Hanging:
    """A call that does nothing until `go_on` is set; `begun` once it was made, `calls` holds what with."""

    def __init__(self, act):
        self._act, self.calls = act, []
        self.begun, self.go_on = threading.Event(), threading.Event()

    def __call__(self, *told):
        self.calls.append(told)
        self.begun.set()
        assert self.go_on.wait(PATIENCE_S)
        return self._act(*told)
