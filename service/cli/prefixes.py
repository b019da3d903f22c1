"""Verbs on prefixes and their versions."""

from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer

from service.cli.target import connect
from service.cli.terminal import CommandError, moment, number, out, plain, show_table

prefixes = typer.Typer(name="prefixes", help="Trained prefixes and their versions.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="A prefix, such as alice:brand-voice.")]


@prefixes.command("list")
def list_prefixes(context: typer.Context) -> None:
    """The prefixes that the key reaches."""
    rows = [
        (prefix["id"], prefix.get("live_version"), len(prefix.get("versions") or []))
        for prefix in connect(context).pages("/v1/prefixes")
    ]
    show_table(("prefix", "live version", "versions"), rows, "no prefixes yet")


@prefixes.command("versions")
def versions(context: typer.Context, name: Name) -> None:
    """A prefix's versions, with what each gained on its held-out rows."""
    found = connect(context).get(f"/v1/prefixes/{segment(name)}")
    rows = [_version(entry, found.get("live_version")) for entry in found.get("versions") or []]
    columns = ("version", "", "positions", "held-out loss", "base loss", "created (UTC)")
    show_table(columns, rows, f"{name} has no versions")


def _version(entry: Mapping[str, Any], live: object) -> tuple[object, ...]:
    metrics = entry.get("metrics") or {}
    losses = [number(entry.get(field, metrics.get(field))) for field in ("held_out_loss", "base_loss")]
    state = "live" if entry["version"] == live else ""
    return (
        entry["version"],
        state,
        entry.get("prefix_length"),
        *losses,
        moment(entry.get("created_at")),
    )


@prefixes.command("promote")
def promote(context: typer.Context, name: Name, version: int) -> None:
    """Make a version the live one."""
    connect(context).post(f"/v1/prefixes/{segment(name)}/promote", {"version": version})
    out().print(plain(f"{name} now means {name}@{version}"))


@prefixes.command("rollback")
def rollback(context: typer.Context, name: Name) -> None:
    """Go back to the version that was live before."""
    answer = connect(context).post(f"/v1/prefixes/{segment(name)}/rollback")
    out().print(plain(f"{name} now means {name}@{answer.get('live_version')}"))


@prefixes.command("delete")
def delete(context: typer.Context, name: Name) -> None:
    """Delete a prefix with all its versions, or one version (name@N) that is not live."""
    answer = connect(context).delete(f"/v1/models/{segment(name)}")
    if not answer.get("deleted"):
        raise CommandError(f"{name} answers no new request, but a process still holds it; try again")
    later = "; its bytes are still being removed" if answer.get("purge") == "pending" else ""
    out().print(plain(f"{name} deleted{later}"))


def segment(name: str) -> str:
    """`name` as one segment of a path."""
    return quote(name, safe=":@")
