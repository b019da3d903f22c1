"""How tests wait for what comes by itself: long enough for a machine that does much else."""

import threading
import time

PATIENCE_S = 120


def wait_until(condition):
    """Until it holds; a test that waits in vain fails."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


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
