"""`/v1/usage`: requests and tokens by user and day."""

from typing import Annotated

from fastapi import APIRouter, Query

from prefix_store.usage import UsageDay
from service.deps import AnyScope, PartsDep, shown
from service.shapes import Everything, UsageShown

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


def _shown(day: UsageDay) -> UsageShown:
    return {
        "day": day.day,
        "user": day.user,
        "task": day.task,
        "requests": day.requests,
        "prompt_tokens": day.prompt_tokens,
        "completion_tokens": day.completion_tokens,
    }


@router.get("/v1/usage", responses=shown({"object": "list", "data": [EXAMPLE]}, 404))
def usage(
    parts: PartsDep,
    scope: AnyScope,
    start: Day = None,
    end: Day = None,
    user: Annotated[str | None, Query(max_length=100)] = None,
) -> Everything[UsageShown]:
    """Use by user and day, newest day first; a user's key sees its own."""
    parts.meter.flush()
    days = parts.store.usage.report(scope, start, end, user)
    return {"object": "list", "data": [_shown(day) for day in days]}
