"""Verbs that only look: models and usage."""

from typing import Annotated

import typer

from service.cli.target import connect
from service.cli.terminal import moment, show_table

Day = Annotated[str | None, typer.Option(help="A day, YYYY-MM-DD (UTC).")]


def models(context: typer.Context) -> None:
    """The base model and the prefixes that the key may generate with."""
    rows = [
        (model["id"], model["owned_by"], moment(model["created"]))
        for model in connect(context).get("/v1/models")["data"]
    ]
    show_table(("model", "owned by", "created (UTC)"), rows, "no models")


def usage(
    context: typer.Context,
    start: Day = None,
    end: Day = None,
    user: Annotated[str | None, typer.Option(help="Only this user.")] = None,
) -> None:
    """Tokens by user and day."""
    answer = connect(context).get("/v1/usage", start=start, end=end, user=user)
    rows = [
        (
            row.get("day"),
            row.get("user") or "(tenant)",
            row.get("requests"),
            row.get("prompt_tokens"),
            row.get("completion_tokens"),
        )
        for row in answer["data"]
    ]
    show_table(("day", "user", "requests", "prompt tokens", "completion tokens"), rows, "no usage yet")
