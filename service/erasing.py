"""Removing bytes behind a deletion that stands already, within a bounded time, and saying how far it came."""

import time
from collections.abc import Callable

import structlog
from anyio import move_on_after, to_thread
from fastapi.responses import JSONResponse

from prefix_store.erasure import Erasure
from prefix_store.scope import Scope
from service.deletion import reached_all
from service.parts import Parts
from service.shapes import Deleted, Erasing

log = structlog.get_logger("service")

PURGE_S = 5.0  # the longest that an answer waits for bytes to go


async def erase(parts: Parts, begun: Erasure, shown_id: str) -> JSONResponse:
    """Wait for every process, and remove bytes and rows; the tombstone is committed already.

    200 when no process serves what is gone, else 202. Whatever is cut short here goes on by itself: in this
    process a little later, or at the next start.
    """
    began = time.monotonic()
    parts.telemetry.erasure(begun.kind)
    done = await reached_all(parts, begun.seq)
    purged = await _within_bounds(parts, lambda: parts.store.erasure.purge(begun.id).state == "done")
    parts.telemetry.erased(begun.kind, time.monotonic() - began)
    answer = _told(shown_id, begun.kind, done, purged)
    if done and purged:
        return JSONResponse(answer)
    answer["erasure"] = begun.id
    return JSONResponse(
        answer, 200 if done else 202, {"location": f"/v1/erasures/{begun.id}", "retry-after": "1"}
    )


async def delete(parts: Parts, scope: Scope, seq: int, kind: str, shown_id: str) -> JSONResponse:
    """The same for a file or model, whose row is gone by the change `seq` and whose bytes are noted."""
    done = await reached_all(parts, seq)
    purged = await _within_bounds(parts, lambda: parts.store.erasure.clear(scope))
    return JSONResponse(_told(shown_id, kind, done, purged), 200 if done else 202)


async def clear(parts: Parts, scope: Scope) -> None:
    """Remove the bytes that a deletion has noted, as far as the time goes."""
    await _within_bounds(parts, lambda: parts.store.erasure.clear(scope))


async def _within_bounds(parts: Parts, act: Callable[[], bool]) -> bool:
    """Whether `act` has ended and removed everything; what takes longer goes on behind, in the upkeep at last."""
    try:
        with move_on_after(PURGE_S):
            return await to_thread.run_sync(
                _if_room, parts, act, abandon_on_cancel=True, limiter=parts.purging
            )
    except Exception as error:  # noqa: BLE001 - the disk, the storage, the database: it is open and goes on
        log.warning("erasure.goes_on", error=type(error).__name__)
    return False


def _if_room(parts: Parts, act: Callable[[], bool]) -> bool:
    """Do `act`, unless threads that nobody waits for any more, and that no limiter counts, are as many as may be."""
    if not parts.removing.acquire(blocking=False):
        return False
    try:
        return act()
    finally:
        parts.removing.release()


def _told(shown_id: str, kind: str, done: bool, purged: bool) -> Deleted:
    purge = "done" if purged else "pending"
    return {"id": shown_id, "object": kind, "deleted": done, "purge": purge}  # type: ignore[typeddict-item]


def erasure_json(parts: Parts, erasure: Erasure) -> Erasing:
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
