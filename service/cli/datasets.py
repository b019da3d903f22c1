"""Verbs on datasets, and how a file of this machine becomes one."""

import gzip
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.target import connect
from service.cli.terminal import CommandError, moment, out, plain, show_table

if TYPE_CHECKING:
    from service.cli.connection import Connection, Json

datasets = typer.Typer(name="datasets", help="Training files.", no_args_is_help=True)

User = Annotated[str | None, typer.Option(help="The user that it belongs to (tenant key).")]
Task = Annotated[str | None, typer.Option(help="The task that it belongs to (tenant key).")]


@datasets.command("upload")
def upload(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="A JSONL file of prompts and completions, or its .gz.")],
    user: User = None,
    task: Task = None,
) -> None:
    """Send a training file; a .gz is unpacked here."""
    made = send(connect(context), path, user=user, task=task)
    out().print(plain(f"{made['id']}  {made['filename']}  {made['bytes']} bytes  {made['status']}"))


@datasets.command("list")
def list_datasets(context: typer.Context) -> None:
    """The datasets that the key reaches."""
    rows = [
        (file["id"], file["filename"], file["bytes"], moment(file["created_at"]))
        for file in connect(context).pages("/v1/files", purpose="fine-tune")
    ]
    show_table(("id", "file", "bytes", "created (UTC)"), rows, "no datasets yet")


@datasets.command("delete")
def delete(
    context: typer.Context,
    file_id: str,
    versions: Annotated[
        bool, typer.Option("--versions", help="Also the versions that learned from it.")
    ] = False,
) -> None:
    """Erase a dataset's bytes."""
    answer = connect(context).delete(f"/v1/files/{file_id}", versions="true" if versions else None)
    later = "; its bytes are still being removed" if answer.get("purge") == "pending" else ""
    out().print(plain(f"{file_id} deleted{later}"))


def send(connection: "Connection", path: Path, *, user: str | None = None, task: str | None = None) -> "Json":
    """Upload a file of this machine; the service's answer.

    Raises:
        CommandError: the file cannot be read or unpacked.
    """
    return connection.upload(path.name.removesuffix(".gz"), read_file(path), user=user, task=task)


def read_file(path: Path) -> bytes:
    """The bytes of `path`, unpacked if its name ends in .gz."""
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise CommandError(f"cannot read {path}: {error}") from error
