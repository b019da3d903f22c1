"""Turns of each tenant: how many threads work for it at once, whatever it sends.

Writes of one tenant wait for one another in the database, each with a thread and a connection, so that a few dozen of
them took all that there are from everybody; and long prompts take the threads that encode. Here they wait in their order,
and hold nothing. A turn is as long as the thread's work, not the request: who sends a body slowly, waits for a deletion to
reach everybody, or sends or takes a file has none meanwhile.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final, TypeVar, TypeVarTuple
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread

from prefix_store.scope import Scope

MOST: Final = 4  # of one tenant, of 40 threads and 30 connections
_Told = TypeVarTuple("_Told")
_Made = TypeVar("_Made")


class Turns:
    """Who has one. Belongs to the event loop.

    Args:
        most: of one tenant at once.
        threads: that `run` works on; everybody's if not given.
    """

    def __init__(self, most: int, threads: CapacityLimiter | None = None) -> None:
        self._most, self._threads = most, threads
        # A tenant's is there as long as anybody has or awaits a turn.
        self._of: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, tenant_id: str) -> AsyncIterator[None]:
        """Wait for a turn of a tenant, and have it for the block."""
        turns = self._of.get(tenant_id)
        if turns is None:
            turns = self._of[tenant_id] = asyncio.Semaphore(self._most)
        async with turns:
            yield

    async def run(self, scope: Scope, act: Callable[[*_Told], _Made], *told: *_Told) -> _Made:
        """Do `act` on a thread in a turn of the caller's tenant; raises what it raises."""
        async with self.turn(scope.tenant_id):
            return await to_thread.run_sync(act, *told, limiter=self._threads)
