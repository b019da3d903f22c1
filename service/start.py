"""One serving process from its settings to its exit status."""

import gc
import os
import sys
import threading
import time

import structlog
from pydantic import ValidationError

from prefix_engine import load_base
from prefix_engine.checkpoint import BaseError
from prefix_engine.kernels import KernelError
from prefix_store import StoreSettings, open_store
from prefix_store.core_dumps import forbid_core_dumps
from prefix_store.errors import StoreError
from prefix_store.logs import write_logs
from prefix_store.tracing import TracingError, open_tracing
from service.parts import Parts
from service.revocation import DEAD_AFTER_S
from service.server import Server
from service.settings import ServiceSettings
from service.tracing import Traces

log = structlog.get_logger("service")

_LEAVE_S = 2.0
_WORKERS = "AnyIO worker"  # threads that routes run on; not daemons, and they end with the event loop


def run() -> None:
    """Open the store, load the base, serve until SIGTERM."""
    forbid_core_dumps()
    write_logs()
    try:
        settings = ServiceSettings()
        write_logs(settings.log_format, settings.log_level)
        tracing = open_tracing("prefixserve-service", settings.otel_endpoint)
        base = load_base(settings.base_model, settings.device)
        reserved = StoreSettings().reserved_names | {base.name}
        store = open_store(StoreSettings(reserved_names=reserved))
        if store.settings.process_dead_after < DEAD_AFTER_S:
            sys.exit(f"PREFIX_PROCESS_DEAD_AFTER must be at least {DEAD_AFTER_S:g} seconds")
        store.prepare()
    except ValidationError as error:
        first = error.errors()[0]
        sys.exit(f"PREFIX_{'_'.join(map(str, first['loc'])).upper()}: {first['msg']}")
    except (StoreError, BaseError) as error:
        sys.exit(str(error))
    except TracingError as error:
        sys.exit(f"PREFIX_OTEL_ENDPOINT: {error}")
    log.info("base.loaded", base=base.name, fingerprint=base.fingerprint[:12], device=str(base.device))
    try:
        parts = Parts.build(settings, store, base)
    except KernelError as error:
        sys.exit(f"PREFIX_KERNELS: {error}")
    del base  # the engine has packed what it needs
    log.info("engine.built", kernels=parts.engine.kernels, weights=settings.weights, kv=settings.kv)
    try:
        parts.open_metrics()
    except OSError as error:
        sys.exit(f"PREFIX_METRICS_PORT: port {settings.metrics_port} of {settings.host}: {error.strerror}")
    if tracing is not None:
        parts.traces = Traces(tracing)
    parts.watchdog.arm()
    server = Server(parts)
    keep_for_ever()
    server.run()
    leave(0 if server.started else 1)


def leave(status: int) -> None:
    """End with a status, also where threads wait for a database that stands still: the interpreter waits for them."""
    give_up = time.monotonic() + _LEAVE_S
    others = [thread for thread in threading.enumerate() if thread.name.startswith(_WORKERS)]
    for thread in others:
        thread.join(max(0.0, give_up - time.monotonic()))
    if left := sum(thread.is_alive() for thread in others):
        log.warning("service.threads_left", threads=left)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        sys.exit(status)


def keep_for_ever() -> None:
    """Take what is there now, half a million objects, out of the garbage collector's rounds.

    A full round over them took 0.2 to 0.5 s, in which nobody else of the process did anything; a flood of refusals
    brought one every few seconds. What is made from now on is collected as ever.
    """
    gc.collect()
    gc.freeze()
