"""What a service process does by itself: write usage, go on with erasures, sweep up."""

import threading
import time
from collections.abc import Callable

import structlog

from prefix_store import Store
from service.last_acts import within
from service.meter import Meter

log = structlog.get_logger("service")

_FLUSH_S = 0.5
_RESUME_S = 2.0
_SWEEP_S = 3600.0
_END_S = 10.0
_LAST_S = 1.0  # for the last usage, though the threads have taken their time


class Upkeep:
    """A thread for each of the three, so that a slow one, above all a storage that hangs, holds up no other."""

    def __init__(self, store: Store, meter: Meter) -> None:
        self._meter = meter
        self._stop = threading.Event()
        turns: list[tuple[str, Callable[[], object], float]] = [
            ("usage", meter.flush, _FLUSH_S),
            ("erasures", store.erasure.go_on, _RESUME_S),
            ("sweep", store.janitor.sweep, _SWEEP_S),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(act, seconds), name=f"upkeep-{name}", daemon=True)
            for name, act, seconds in turns
        ]

    def start(self) -> None:
        """Begin; erasures that a crash cut short go on soon."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Write what is left and end, within some seconds; what could not be written is counted in the log."""
        self._stop.set()
        give_up = time.monotonic() + _END_S
        for thread in self._threads:
            thread.join(timeout=max(0.0, give_up - time.monotonic()))
        within(max(_LAST_S, give_up - time.monotonic()), self._meter.flush, "upkeep-last")
        if lost := self._meter.left():
            log.error("usage.lost", requests=lost)

    def _run(self, act: Callable[[], object], seconds: float) -> None:
        while not self._stop.is_set():
            try:
                act()
            except Exception as error:  # noqa: BLE001 - the loop's outermost edge: tried again at its next turn
                log.warning("upkeep.failed", error=type(error).__name__)
            self._stop.wait(seconds)
