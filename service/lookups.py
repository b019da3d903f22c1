"""What the database is asked before anything of a request is begun: whose a key is, what a name means.

On threads of its own, so that nobody's other work holds these up, and for a bounded time. libpq gives up a server that
acknowledges nothing, and a server gives up a statement; but a server that stands still while its machine acknowledges
does neither, and an answer to it would be waited for for ever.
"""

from collections.abc import Callable
from typing import Final, TypeVar, TypeVarTuple, Unpack

from anyio import CapacityLimiter, move_on_after, to_thread

from prefix_store.engines import Waits
from service.errors import ApiError

_THREADS: Final = 16  # of the pool's 30 connections some are left for what is not looked up
_Told = TypeVarTuple("_Told")
_Found = TypeVar("_Found")


class Lookups:
    """Asks on a few threads.

    Attributes:
        seconds: that one look-up may take; what the waits allow a statement, its connection included.
    """

    def __init__(self, waits: Waits) -> None:
        self.seconds = waits.pool + waits.connect + waits.statement
        self._limiter = CapacityLimiter(_THREADS)

    async def ask(self, look: Callable[[Unpack[_Told]], _Found], *told: *_Told) -> _Found:
        """What `look` answers, which must change nothing that matters: it may go on when nobody waits for it any more.

        Threads that are left behind hold a connection each, so that there are no more of them than connections: who
        gets none gives up by itself, sooner than this does.

        Raises:
            ApiError: 503, it took too long.
        """
        with move_on_after(self.seconds):
            return await to_thread.run_sync(look, *told, abandon_on_cancel=True, limiter=self._limiter)
        raise ApiError(503, "overloaded", "the database does not answer; try again", retry_after=1.0)
