"""Serving comes first: how fast training goes while texts are generated on the same machine.

The processor's scheduler lets every other process by already; a GPU's does not, and caches and memory bandwidth are
shared in any case. So between two steps the training process rests, in proportion to what the step took.
"""

import threading

_LONGEST_REST_S = 60.0  # far from the silence after which a process counts as stuck


class Pace:
    """The training process's side; told by the thread that reads what the worker sends."""

    def __init__(self) -> None:
        self._share = 1.0
        self._news = threading.Event()

    def take(self, share: float) -> None:
        """Train for this share of the time from now on, from above 0 to 1."""
        self._share = share
        self._news.set()

    def wake(self) -> None:
        """Something has come in that must not wait."""
        self._news.set()

    def rest(self, step_s: float) -> None:
        """Rest after a step of so many seconds, until it is over or there is news."""
        share = self._share
        if share < 1.0:
            self._news.wait(min(_LONGEST_REST_S, step_s * (1.0 - share) / share))
        self._news.clear()
