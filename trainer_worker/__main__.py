"""`python -m trainer_worker`: one worker until SIGTERM or Ctrl-C."""

import logging
import signal
import sys
import threading
from types import FrameType

from prefix_store import StoreSettings, open_store
from prefix_store.errors import StoreError
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker


def main() -> None:
    """Open the store, bring it up to date or see that it is, work."""
    settings = WorkerSettings()
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
    )
    for library in ("alembic", "botocore"):
        logging.getLogger(library).setLevel(logging.WARNING)
    stopping = threading.Event()

    def stop(_signal: int, _frame: FrameType | None) -> None:
        stopping.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    store = open_store(StoreSettings())
    try:
        try:
            store.prepare()
        except StoreError as error:
            sys.exit(str(error))
        Worker(store, settings, stopping).run()
    finally:
        store.close()


if __name__ == "__main__":
    main()
