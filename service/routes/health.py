"""Whether this process lives, and whether it takes requests."""

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from service.deps import PartsDep, shown

router = APIRouter(tags=["health"])


@router.get("/livez", responses=shown({"status": "ok"}))
async def livez(parts: PartsDep) -> JSONResponse:
    """The process turns."""
    return JSONResponse({"status": "ok" if parts.alive else "stuck"}, 200 if parts.alive else 503)


@router.get("/readyz", responses=shown({"status": "ok"}))
def readyz(parts: PartsDep) -> JSONResponse:
    """The process takes requests."""
    reason = parts.not_ready()
    return JSONResponse({"status": reason or "ok"}, 503 if reason else 200)
