"""An act that is waited for only so long, on a thread of its own: a database that stands still keeps no process alive."""

import threading
from collections.abc import Callable

import structlog

log = structlog.get_logger("service")


def within(seconds: float, act: Callable[[], object], name: str) -> bool:
    """Whether `act` ended well within some seconds; what takes longer is left to its thread, a failure is logged.

    Args:
        seconds: to wait for it.
        act: what is done.
        name: of its thread.
    """
    done = threading.Event()

    def run() -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - a process that ends goes on with its end
            log.warning("service.end_failed", what=name, error=type(error).__name__)
        else:
            done.set()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    thread.join(max(0.0, seconds))
    if thread.is_alive():
        log.warning("service.end_hangs", what=name)
    return done.is_set()
