"""Waiting until a deletion has reached every process that serves."""

import asyncio
import time
from contextlib import suppress

from anyio import to_thread

from prefix_store.errors import Unavailable
from prefix_store.failpoints import failpoint
from service.parts import Parts

PATIENCE_S = 5.0
_LOOK_S = 0.02


async def reached_all(parts: Parts, seq: int) -> bool:
    """Whether every live process has acted on the change `seq` within a few seconds.

    A process acts by ending rows, loads and answers, so that nothing is written to a socket after this
    returned true. A database that does not answer meanwhile is asked again: the deletion stands, and who were told
    to send it once more would find nothing to delete.
    """
    failpoint("service.deleted")
    give_up = time.monotonic() + PATIENCE_S
    parts.revocation.look_now()
    while not await to_thread.run_sync(_acked, parts, seq):
        if time.monotonic() > give_up:
            return False
        await asyncio.sleep(_LOOK_S)
    return True


def _acked(parts: Parts, seq: int) -> bool:
    with suppress(Unavailable):
        return parts.store.feed.acked(seq)
    return False
