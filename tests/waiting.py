"""How tests wait for what comes by itself: long enough for a machine that does much else."""

import time

PATIENCE_S = 120


def wait_until(condition):
    """Until it holds; a test that waits in vain fails."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)
