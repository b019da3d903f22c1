"""Threads that encode prompts, in a fair order: of one tenant one prompt at a time, whatever it sends.

Apart from the threads of the database, so that long prompts never hold up authentication. Belongs to the event loop.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread

_PLANNERS = 2
_Planned = TypeVar("_Planned")


class Planning:
    """Two threads, of which a tenant takes one."""

    def __init__(self) -> None:
        self._threads = CapacityLimiter(_PLANNERS)
        # A lock is there for as long as somebody holds it or waits for it.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def run(self, tenant_id: str, plan: Callable[[], _Planned]) -> _Planned:
        """What `plan` returns or raises; it waits for the tenant's earlier ones, then for a thread."""
        turn = self._turns.get(tenant_id)
        if turn is None:
            turn = self._turns[tenant_id] = asyncio.Lock()
        async with turn:
            return await to_thread.run_sync(plan, limiter=self._threads)
