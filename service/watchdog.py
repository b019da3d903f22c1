"""Ends the process when its engine is stuck or it can follow deletions no more, for a supervisor to start another.

A thread that is stuck is in native code, or waits for a disk: nothing in this process can stop it, and it holds the
model's memory and locks that a second thread would need. So no thread is started anew; requests fail with an error
that is worth another try, and the process ends with a status of its own.

Who has lost the change feed for good can answer nothing any more, but a proxy would go on to send it requests.

Two nets: a thread that looks at the engine's beat, and, behind it, one of the interpreter's own in C, for native code
that never gives the interpreter's lock back; it can tell nobody anything but the places of all threads.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from math import isinf
from typing import Final

import structlog

from prefix_engine import Engine, Failed
from prefix_store.logs import places
from service.tickets import Tickets

log = structlog.get_logger("service")

STUCK_STATUS: Final = 75  # EX_TEMPFAIL of sysexits.h
_LOOK_S = 1.0
_PAUSED_S = 5.0  # a look that comes so late says that the whole process stood, not the engine alone
_GRACE_S = 5.0  # for the last errors to leave
_STUCK = Failed("engine_stopped", "the engine is stuck and this process ends; send the request again")
_BLIND = Failed(
    "engine_stopped", "deletions cannot be followed and this process ends; send the request again"
)


class Watchdog:
    """Looks at the engine's beat, and whether deletions are followed, from a thread of its own.

    Args:
        engine: that is watched.
        tickets: requests that must be told.
        stuck_seconds: without a step, although there is work, or without a turn of the idle loop.
        blind: whether deletions cannot be followed by this process, ever again.
        refuse: has the process take nothing new.
        end: ends the process at once with a status; no clean-up could be waited for.
    """

    def __init__(
        self,
        engine: Engine,
        tickets: Tickets,
        stuck_seconds: float,
        blind: Callable[[], bool],
        refuse: Callable[[], None],
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self._engine, self._tickets = engine, tickets
        self._stuck_s, self._blind, self._refuse, self._end = stuck_seconds, blind, refuse, end
        self._look_s = min(_LOOK_S, stuck_seconds / 8)
        self._armed = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def arm(self) -> None:
        """Have the interpreter end the process, with status 1, if this thread itself cannot run for twice as long.

        One such timer exists in a process, so whoever owns the process asks for it.
        """
        self._armed = True
        self._set_timer()  # the engine may be stuck before the first look

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; to be called when the engine has been closed, which may itself be what is stuck."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=10.0)
        if self._armed:
            faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        since = seen = time.monotonic()
        while not self._stop.wait(self._look_s):
            if self._armed:
                self._set_timer()
            now = time.monotonic()
            if now - seen > self._look_s + _PAUSED_S:
                since = now
            seen = now
            age = self._engine.beat_age()
            if isinf(age) or min(age, now - since) > self._stuck_s:
                self._tell_stuck(age)
                self._give_up(_STUCK)
                return
            if self._blind():
                self._give_up(_BLIND)
                return

    def _set_timer(self) -> None:
        faulthandler.dump_traceback_later(2 * self._stuck_s, exit=True)

    @staticmethod
    def _tell_stuck(age: float) -> None:
        frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
        threads = {t.name: places(frames[t.ident]) for t in threading.enumerate() if t.ident in frames}
        log.critical("engine.stuck", seconds=age if isinf(age) else round(age, 1), threads=threads)

    def _give_up(self, why: Failed) -> None:
        self._refuse()
        self._tickets.fail(why)
        give_up = time.monotonic() + _GRACE_S
        while self._tickets.count() and time.monotonic() < give_up:
            time.sleep(0.05)
        log.critical("process.ends", status=STUCK_STATUS, requests=self._tickets.count())
        self._end(STUCK_STATUS)
