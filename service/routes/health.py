"""Whether this process lives, and whether it takes requests."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service.deps import PartsDep, shown
from service.shapes import Health

router = APIRouter(tags=["health"])

_ANSWERS = shown({"status": "ok"})
_ANSWERS[200] |= {"model": Health}
_ANSWERS[503] = {"model": Health, "description": "It does not."}


@router.get("/livez", responses=_ANSWERS)
async def livez(parts: PartsDep) -> JSONResponse:
    """The process turns."""
    return JSONResponse({"status": "ok" if parts.alive else "stuck"}, 200 if parts.alive else 503)


@router.get("/readyz", responses=_ANSWERS)
async def readyz(parts: PartsDep) -> JSONResponse:
    """The process takes requests."""
    reason = parts.not_ready_here() or await parts.readiness.away()
    return JSONResponse({"status": reason or "ok"}, 503 if reason else 200)
