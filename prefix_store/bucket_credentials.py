"""Credentials of a bucket, found where AWS's own tools look, and found again as long as a process runs.

botocore reads a file once, and so would never see a rotated key: a session of its own looks anew every few minutes. What
it gives is kept as it is and asked each time, since a role's credentials renew themselves before they end.
"""

import logging
import threading
import time
from typing import Any

import botocore.session

log = logging.getLogger(__name__)

_HOLD_S, _RETRY_S, _LEAST_HOLD_S = 300.0, 5.0, 1.0


class BucketCredentials:
    """For any thread."""

    def __init__(self) -> None:
        self._looking = threading.Lock()
        self._found: Any = None  # botocore's own, which may renew themselves
        self._frozen: Any = None  # as they were last
        self._until, self._failed = 0.0, False
        self._renew()

    def now(self) -> Any:
        """Frozen; the last ones while none can be had, None if there never were any. One caller looks, none waits."""
        if self._looking.acquire(blocking=False):
            try:
                self._renew()
            finally:
                self._looking.release()
        return self._frozen

    def left(self) -> float:
        """Seconds until they are looked for again, so that whoever keeps them asks again then."""
        return max(_LEAST_HOLD_S, self._until - time.monotonic())

    def _renew(self) -> None:
        """Nothing is asked for some seconds after a failure: each answer may take long, and requests wait behind it."""
        due = self._frozen is None or time.monotonic() >= self._until
        if self._failed and not due:
            return
        fresh = _look() if due else None
        found = self._found if fresh is None else fresh
        frozen = None if found is None else _freeze(found)
        if frozen is None and fresh is not None and self._found is not None:
            fresh, found = None, self._found
            frozen = _freeze(found)
        if frozen is not None:
            self._found, self._frozen = found, frozen
        self._failed = frozen is None or (due and fresh is None)
        if due or self._failed:
            self._until = time.monotonic() + (_RETRY_S if self._failed else _HOLD_S)


def _look() -> Any:
    try:
        return botocore.session.get_session().get_credentials()
    except Exception as error:  # noqa: BLE001 - whoever is asked for a role fails in his own way
        return _failed(error)


def _freeze(found: Any) -> Any:
    try:
        return found.get_frozen_credentials()
    except Exception as error:  # noqa: BLE001 - as above: STS refuses with a ClientError
        return _failed(error)


def _failed(error: Exception) -> None:
    log.warning("credentials of the object storage cannot be read: %s", type(error).__name__)
