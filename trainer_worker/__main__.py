"""`python -m trainer_worker`: one worker until SIGTERM or Ctrl-C."""

import os
import signal
import socket
import sys
import threading
import time

import structlog
from pydantic import ValidationError

from prefix_store import StoreSettings, open_store
from prefix_store.core_dumps import forbid_core_dumps
from prefix_store.errors import StoreError
from prefix_store.logs import write_logs
from prefix_store.tracing import TracingError, open_tracing
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

log = structlog.get_logger("trainer_worker")

_LAST_SECONDS = 10.0  # behind the time that a run has to save its state


def _heed_signals(stopping: threading.Event, seconds: float) -> None:
    """Have SIGTERM and Ctrl-C set `stopping`, and end whatever still hangs `seconds` later.

    The training process goes with us, and a job's lease runs out. A handler alone would not do: Python runs it only
    when the main thread comes back from what it waits for, so another thread hears of the signal too.
    """
    heard, told = socket.socketpair()
    told.setblocking(False)

    def wait(heard: socket.socket, _kept_open: socket.socket) -> None:
        heard.recv(1)
        stopping.set()
        time.sleep(seconds)
        log.warning("worker.left")
        os._exit(1)

    signal.set_wakeup_fd(told.fileno())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    threading.Thread(target=wait, args=(heard, told), name="signals", daemon=True).start()


def main() -> None:
    """Open the store, bring it up to date or see that it is, work."""
    forbid_core_dumps()
    write_logs()
    try:
        settings = WorkerSettings()
        write_logs(settings.log_format, settings.log_level)
        tracing = open_tracing("prefixserve-worker", settings.otel_endpoint)
        store = open_store(StoreSettings())
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"PREFIX_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}")
    except StoreError as error:
        sys.exit(str(error))
    except TracingError as error:
        sys.exit(f"PREFIX_OTEL_ENDPOINT: {error}")
    stopping = threading.Event()

    _heed_signals(stopping, settings.worker_stop_seconds + _LAST_SECONDS)
    try:
        try:
            store.prepare()
        except StoreError as error:
            sys.exit(str(error))
        Worker(store, settings, stopping, tracing).run()
    finally:
        store.close()
        if tracing is not None:
            tracing.close()


if __name__ == "__main__":
    main()
