"""What a service process does by itself: write usage, go on with erasures, sweep up."""

import threading
import time

import structlog

from prefix_store import Store
from service.meter import Meter

log = structlog.get_logger("service")

_FLUSH_S = 0.5
_RESUME_S = 2.0
_SWEEP_S = 3600.0


class Upkeep:
    """A thread that turns twice a second."""

    def __init__(self, store: Store, meter: Meter) -> None:
        self._store, self._meter = store, meter
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="upkeep", daemon=True)

    def start(self) -> None:
        """Begin; erasures cut short by a crash go on at once."""
        self._thread.start()

    def stop(self) -> None:
        """Write what is left and end."""
        self._stop.set()
        self._thread.join(timeout=10.0)
        self._meter.flush()

    def _run(self) -> None:
        resumed = swept = -_SWEEP_S
        while not self._stop.is_set():
            now = time.monotonic()
            self._do(self._meter.flush)
            if now - resumed >= _RESUME_S:
                self._do(self._store.erasure.resume)
                resumed = now
            if now - swept >= _SWEEP_S:
                self._do(self._store.janitor.sweep)
                swept = now
            self._stop.wait(_FLUSH_S)

    @staticmethod
    def _do(act: object) -> None:
        try:
            act()  # type: ignore[operator]
        except Exception as error:  # noqa: BLE001 - the loop's outermost edge: tried again at its next turn
            log.warning("upkeep.failed", error=type(error).__name__)
