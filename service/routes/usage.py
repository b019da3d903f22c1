"""`/v1/usage`: requests and tokens by user and day."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Query

from service.deps import AnyScope, PartsDep, shown

router = APIRouter(tags=["usage"])

EXAMPLE = {
    "day": "2026-01-01",
    "user": "alice",
    "task": None,
    "requests": 3,
    "prompt_tokens": 60,
    "completion_tokens": 90,
}
Day = Annotated[str | None, Query(pattern=r"^\d{4}-\d{2}-\d{2}$", description="YYYY-MM-DD, UTC, inclusive.")]


@router.get("/v1/usage", responses=shown({"object": "list", "data": [EXAMPLE]}))
def usage(
    parts: PartsDep,
    scope: AnyScope,
    start: Day = None,
    end: Day = None,
    user: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """Use by user and day, newest day first; a user's key sees its own."""
    parts.meter.flush()
    days = parts.store.usage.report(scope, start, end, user)
    return {"object": "list", "data": [asdict(day) for day in days]}
