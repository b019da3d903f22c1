"""Answering for an erasure that has begun: 200 when nobody serves what is gone, else 202 and where to look."""

import time
from typing import Any

import structlog
from anyio import to_thread
from fastapi.responses import JSONResponse

from prefix_store.erasure import Erasure
from service.deletion import reached_all
from service.parts import Parts

log = structlog.get_logger("service")


async def erase(parts: Parts, begun: Erasure, shown_id: str) -> JSONResponse:
    """Remove bytes and rows, and wait for every process; the tombstone is committed already.

    Whatever is cut short here goes on by itself: in this process a little later, or at the next start.
    """
    began = time.monotonic()
    parts.telemetry.erasure(begun.kind)
    done = await reached_all(parts, begun.seq)
    try:
        await to_thread.run_sync(parts.store.erasure.purge, begun.id)
    except Exception as error:  # noqa: BLE001 - the disk, the database: the erasure is open and goes on
        log.warning("erasure.goes_on", erasure=begun.id, error=type(error).__name__)
        done = False
    parts.telemetry.erased(begun.kind, time.monotonic() - began)
    answer: dict[str, Any] = {"id": shown_id, "object": begun.kind, "deleted": done}
    if not done:
        answer |= {"erasure": begun.id}
    headers = {} if done else {"location": f"/v1/erasures/{begun.id}", "retry-after": "1"}
    return JSONResponse(answer, 200 if done else 202, headers)


def erasure_json(parts: Parts, erasure: Erasure) -> dict[str, Any]:
    """How far an erasure is; `deleted` once no process serves what is gone and its bytes are removed."""
    return {
        "id": erasure.id,
        "object": "erasure",
        "kind": erasure.kind,
        "state": erasure.state,
        "deleted": erasure.state == "done" and parts.store.feed.acked(erasure.seq),
        "created_at": int(erasure.created_at),
        "done_at": None if erasure.done_at is None else int(erasure.done_at),
    }
