"""uvicorn with a drain: SIGTERM refuses what is new and lets what runs finish, or come, for a while."""

import asyncio
import socket
from types import FrameType

import structlog
import uvicorn
from anyio import to_thread

from service.app import create_app
from service.parts import Parts

log = structlog.get_logger("service")

_CUT_S = 5.0  # after the drain: for the last error events to leave


class Server(uvicorn.Server):
    """Serves one process's parts."""

    def __init__(self, parts: Parts) -> None:
        settings = parts.settings
        super().__init__(
            uvicorn.Config(
                create_app(parts),
                host=settings.host,
                port=settings.port,
                http=parts.connections.protocol(),
                ws="none",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                backlog=2048,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=int(settings.drain_seconds + _CUT_S),
            )
        )
        self._parts = parts

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Refuse what is new from the first signal on; a second one ends everything at once.

        Not the parent's, which raises the signal again after the shutdown: a drain that went well ends
        with status 0.
        """
        del sig, frame
        self.force_exit = self.should_exit
        self.should_exit = self._parts.draining = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for what runs; what is not done when the drain is over ends with an error it can be retried on."""
        self._parts.draining = True
        log.info("service.drains", requests=self._parts.tickets.count())
        cut = asyncio.create_task(self._cut())
        await super().shutdown(sockets)
        cut.cancel()
        log.info("service.stopped")

    async def _cut(self) -> None:
        await asyncio.sleep(self._parts.settings.drain_seconds)
        self._parts.receiving.cut()
        await to_thread.run_sync(self._parts.engine.close)
