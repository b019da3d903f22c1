"""Named places at which a process can be made to die, to fail or to wait, so that a test tries each of them.

`PREFIX_FAILPOINTS="publish.after_seal=kill:2,erase.certified=raise,feed.read=sleep(0.5)"` arms them; nothing is armed
else, and a place then costs one look at an empty dict. The model is etcd's gofail.

Names say the part and the moment: `after_row` and `removed` lie in a transaction that has not committed, `after_seal`
behind a file that no row names yet, `after_commit` behind what stands though nobody was told.
"""

import errno
import itertools
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final, Literal

import redis
from sqlalchemy.exc import OperationalError

from prefix_store.errors import Unavailable

log = logging.getLogger(__name__)


class Fault(Enum):
    """What `raise` raises at a point: what the real fault there raises."""

    DISK = "disk"  # OSError, input/output error
    NETWORK = "network"  # ConnectionResetError
    DATABASE = "database"  # the driver's, within a transaction, which becomes Unavailable and rolls back
    ANSWER = "answer"  # Unavailable: something that does not answer, or not any more
    REDIS = "redis"  # redis.ConnectionError


POINTS: Final = {
    # files and objects
    "draft.before_seal": Fault.DISK,
    "file.after_sync": Fault.DISK,
    "file.after_rename": Fault.DISK,
    "object.before_put": Fault.NETWORK,
    "object.after_put": Fault.NETWORK,
    "object.before_delete": Fault.ANSWER,
    "intent.noted": Fault.ANSWER,
    "litter.before_unlink": Fault.DISK,
    "litter.after_unlink": Fault.ANSWER,
    # every transaction that writes
    "database.before_commit": Fault.DATABASE,
    "database.after_commit": Fault.DATABASE,
    # what a tenant makes
    "key.after_row": Fault.DATABASE,
    "key.revoked": Fault.DATABASE,
    "dataset.after_seal": Fault.ANSWER,
    "dataset.after_row": Fault.DATABASE,
    "job.after_row": Fault.DATABASE,
    # what a worker does
    "claim.taken": Fault.DATABASE,
    "lease.beaten": Fault.DATABASE,
    "checkpoint.after_seal": Fault.ANSWER,
    "checkpoint.after_row": Fault.DATABASE,
    "publish.after_seal": Fault.ANSWER,
    "publish.after_files": Fault.ANSWER,
    "publish.after_row": Fault.DATABASE,
    "publish.after_live": Fault.DATABASE,
    "publish.told": Fault.DATABASE,
    # what moves and what goes
    "rollback.pointed": Fault.DATABASE,
    "version.removed": Fault.DATABASE,
    "dataset.removed": Fault.DATABASE,
    "ledger.before_line": Fault.DISK,
    "ledger.before_sync": Fault.DISK,
    "ledger.after_sync": Fault.DISK,
    "erase.after_tombstone": Fault.DATABASE,
    "erase.after_rows": Fault.ANSWER,
    "erase.after_files": Fault.DISK,
    "erase.after_scrub": Fault.ANSWER,
    "erase.certified": Fault.DATABASE,
    # upkeep and news
    "sweep.before_unlink": Fault.DISK,
    "sweep.before_trim": Fault.DATABASE,
    "usage.after_row": Fault.DATABASE,
    "feed.read": Fault.DATABASE,
    "redis.before_wake": Fault.REDIS,
    # copies
    "backup.after_database": Fault.DISK,
    "backup.before_manifest": Fault.DISK,
    "restore.after_database": Fault.DISK,
    "restore.after_files": Fault.DISK,
    "restore.after_ledger": Fault.ANSWER,
    # the worker's process
    "worker.child_started": Fault.DISK,
    "worker.before_checkpoint": Fault.ANSWER,
    "worker.after_checkpoint": Fault.ANSWER,
    "worker.before_settle": Fault.ANSWER,
    "worker.after_settle": Fault.ANSWER,
    # the service's process
    "service.job_made": Fault.ANSWER,
    "service.deleted": Fault.ANSWER,
    "service.before_first_token": Fault.ANSWER,
    "service.revoking": Fault.ANSWER,
    "service.usage_taken": Fault.ANSWER,
}

Act = Literal["kill", "raise", "sleep"]
_ACT = re.compile(r"(kill|raise|sleep\(([0-9]+(?:\.[0-9]+)?)\))(?::([1-9][0-9]{0,8}))?")


@dataclass(slots=True)
class _Armed:
    act: Act
    seconds: float
    at: int
    passings: Iterator[int]
    passed: int = 0


_armed: dict[str, _Armed] = {}
_text = ""


def failpoint(name: str) -> None:
    """Do what is armed for `name`, at its n-th passing in this process; nothing is armed in production."""
    if _armed:
        _pass(name)


def arm(text: str) -> None:
    """Arm the points that `text` names, and no others; the same text again leaves their counts alone.

    Raises:
        ValueError: see `read`.
    """
    global _text  # noqa: PLW0603 - the points are the process's
    if text == _text:
        return
    found = read(text)
    _armed.clear()
    _armed.update(found)
    _text = text
    if found:
        log.warning("failpoints are armed, this process is made to fail: %s", ", ".join(sorted(found)))


def passed() -> dict[str, int]:
    """How often each armed point was passed so far."""
    return {name: armed.passed for name, armed in _armed.items()}


def read(text: str) -> dict[str, _Armed]:
    """Points by name from `name=action[:n]` separated by commas; actions are `kill`, `raise`, `sleep(seconds)`.

    Raises:
        ValueError: an unknown name or action; the message says what there is.
    """
    found: dict[str, _Armed] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, action = part.partition("=")
        if name not in POINTS:
            raise ValueError(f"no failpoint is named {name!r}; there are: {', '.join(sorted(POINTS))}")
        if name in found:
            raise ValueError(f"failpoint {name} is given twice; give it once")
        matched = _ACT.fullmatch(action)
        if matched is None:
            raise ValueError(
                f"failpoint {name} cannot do {action!r}; give kill, raise or sleep(seconds), each with :n for the n-th"
                " passing if it is not the first"
            )
        act: Act = "kill" if matched[1] == "kill" else "raise" if matched[1] == "raise" else "sleep"
        found[name] = _Armed(act, float(matched[2] or 0), int(matched[3] or 1), itertools.count(1))
    return found


def _pass(name: str) -> None:
    armed = _armed.get(name)
    if armed is None:
        return
    armed.passed = passing = next(armed.passings)
    if passing != armed.at:
        return
    log.warning("failpoint %s: %s", name, armed.act)
    if armed.act == "sleep":
        time.sleep(armed.seconds)
        return
    if armed.act == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    raise _RAISED[POINTS[name]](name)


def _lost(name: str) -> OperationalError:
    return OperationalError(None, None, ConnectionResetError(errno.ECONNRESET, f"failpoint {name}"))


_RAISED: dict[Fault, Callable[[str], Exception]] = {
    Fault.DISK: lambda name: OSError(errno.EIO, f"failpoint {name}"),
    Fault.NETWORK: lambda name: ConnectionResetError(errno.ECONNRESET, f"failpoint {name}"),
    Fault.DATABASE: _lost,
    Fault.ANSWER: lambda name: Unavailable(f"failpoint {name}"),
    Fault.REDIS: lambda name: redis.ConnectionError(f"failpoint {name}"),
}
