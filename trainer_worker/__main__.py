"""`python -m trainer_worker`: one worker until SIGTERM or Ctrl-C."""

import signal
import sys
import threading
from types import FrameType

from pydantic import ValidationError

from prefix_store import StoreSettings, open_store
from prefix_store.errors import StoreError
from prefix_store.logs import write_logs
from prefix_store.tracing import TracingError, open_tracing
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker


def main() -> None:
    """Open the store, bring it up to date or see that it is, work."""
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

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
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
