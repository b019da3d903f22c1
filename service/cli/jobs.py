"""Verbs on training: start a job and watch it, look at jobs, cancel one."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.curve import curves
from service.cli.datasets import Task, User, send
from service.cli.progress import Watched, watch
from service.cli.target import connect
from service.cli.terminal import CommandError, moment, number, out, plain, show_table

if TYPE_CHECKING:
    from service.cli.connection import Connection, Json

CTRL_C = 130  # the shell's status for a process that SIGINT ended

jobs = typer.Typer(name="jobs", help="Training jobs.", no_args_is_help=True)


def train(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="alice:brand-voice or task:e2e; with a user's key brand-voice.")
    ],
    dataset: Annotated[str, typer.Argument(help="A dataset's id, or a .jsonl or .jsonl.gz file to upload.")],
    user: User = None,
    task: Task = None,
    model: Annotated[str | None, typer.Option(help="The base model; the service's own by default.")] = None,
    validation: Annotated[str | None, typer.Option(help="A dataset to hold out, by id.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the dataset.")] = None,
    max_steps: Annotated[int | None, typer.Option(help="Most updates.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Rows of an update.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Step size.")] = None,
    prefix_length: Annotated[int | None, typer.Option(help="Positions of the prefix.")] = None,
    parametrization: Annotated[str | None, typer.Option(help="mlp or direct.")] = None,
    init_text: Annotated[
        str | None, typer.Option(help="Words whose activations the prefix starts from.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same result.")] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Score texts for held-out prompts: all but the slow ter, or some of bleu,chrf,ter,exact_match."
        ),
    ] = None,
    gate: Annotated[
        str | None, typer.Option(help="What decides on going live: loss, or one of them.")
    ] = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Show the progress until the end.")] = True,
) -> None:
    """Train a prefix, with a live progress bar."""
    connection = connect(context)
    wishes = {
        "n_epochs": epochs,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "prefix_length": prefix_length,
        "parametrization": parametrization,
        "init_text": init_text,
    }
    job = start(
        connection,
        name,
        file_id_of(connection, dataset, user, task),
        {key: value for key, value in wishes.items() if value is not None},
        model=model,
        validation_file=validation,
        seed=seed,
        evaluation=_evaluation(evaluate, gate),
    )
    out().print(plain(f"job {job['id']} trains {name}"))
    if wait:
        _follow(connection, name, job["id"])


def start(
    connection: "Connection",
    name: str,
    file_id: str,
    hyperparameters: Mapping[str, Any],
    *,
    model: str | None = None,
    validation_file: str | None = None,
    seed: int | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> "Json":
    """Create the job; `name` with a colon is a prefix's full name, without one a suffix of the key's user."""
    field = "prefix" if ":" in name else "suffix"
    body = {
        "model": model or connection.get("/v1/models")["data"][0]["id"],
        "training_file": file_id,
        "validation_file": validation_file,
        "seed": seed,
        "hyperparameters": dict(hyperparameters) or None,
        "evaluation": evaluation,
        field: name,
    }
    return connection.post("/v1/fine_tuning/jobs", body)


def _evaluation(evaluate: str | None, gate: str | None) -> dict[str, Any] | None:
    if evaluate is None and gate in {None, "loss"}:
        return None
    metrics = None if evaluate is None or evaluate == "all" else evaluate.split(",")
    return {"metrics": metrics, "gate": gate}


def file_id_of(connection: "Connection", dataset: str, user: str | None, task: str | None) -> str:
    """The id of a dataset; a file of this machine is uploaded first."""
    path = Path(dataset)
    if dataset.startswith("file-") and not path.exists():
        return dataset
    made = send(connection, path, user=user, task=task)
    out().print(plain(f"uploaded {path.name} as {made['id']}"))
    return str(made["id"])


def _follow(connection: "Connection", name: str, job_id: str) -> None:
    try:
        (job,) = watch([Watched(name, job_id, connection)], out())
    except KeyboardInterrupt:
        out().print(
            plain(
                f"\nstopped watching; job {job_id} goes on. See `prefixserve jobs events {job_id}`, "
                f"stop it with `prefixserve jobs cancel {job_id}`"
            )
        )
        raise typer.Exit(CTRL_C) from None
    out().print(plain(verdict(job)))
    if job["status"] != "succeeded":
        raise typer.Exit(1)


def verdict(job: "Json") -> str:
    """How a job ended, in a sentence."""
    if job["status"] != "succeeded":
        error = job.get("error") or {}
        return f"{job['status']}: {error.get('message') or 'no reason was given'}"
    result = job.get("result") or {}
    losses = f"held-out loss {number(result.get('base_loss'))} -> {number(result.get('held_out_loss'))}"
    if result.get("promoted", True):
        return f"{job['fine_tuned_model']} is live; {losses}"
    return f"{job['fine_tuned_model']} was not promoted, see the job's events; {losses}"


@jobs.command("list")
def list_jobs(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="At most this many, newest first.", min=1, max=100)] = 20,
) -> None:
    """Training jobs, newest first."""
    page = connect(context).get("/v1/fine_tuning/jobs", limit=limit)
    rows = [
        (job["id"], job["status"], job.get("fine_tuned_model"), moment(job["created_at"]))
        for job in page["data"]
    ]
    show_table(("id", "status", "model", "created (UTC)"), rows, "no jobs yet")


@jobs.command("cancel")
def cancel(context: typer.Context, job_id: str) -> None:
    """Stop a job; nothing of it is published afterwards."""
    job = connect(context).post(f"/v1/fine_tuning/jobs/{job_id}/cancel")
    if job["status"] != "cancelled":
        raise CommandError(f"job {job_id} is {job['status']}")
    out().print(plain(f"job {job_id} cancelled"))


@jobs.command("events")
def events(context: typer.Context, job_id: str) -> None:
    """What happened to a job, oldest first."""
    found = list(connect(context).pages(f"/v1/fine_tuning/jobs/{job_id}/events"))
    rows = [(moment(event["created_at"]), event["level"], event["message"]) for event in reversed(found)]
    show_table(("at (UTC)", "level", "what"), rows, "nothing yet")
    for line in curves(found):
        out().print(plain(line))


@jobs.command("checkpoints")
def checkpoints(context: typer.Context, job_id: str) -> None:
    """The last checkpoint of a job that is not over: the name by which it can be called already."""
    found = connect(context).pages(f"/v1/fine_tuning/jobs/{job_id}/checkpoints")
    rows = [
        (
            kept["fine_tuned_model_checkpoint"],
            str(kept["step_number"]),
            number(kept["metrics"].get("valid_loss")),
            moment(kept["created_at"]),
        )
        for kept in found
    ]
    columns = ("call it by", "update", "held-out loss", "at (UTC)")
    show_table(columns, rows, "no checkpoint: the job has kept none yet, or is over")


@jobs.command("results")
def results(
    context: typer.Context,
    job_id: str,
    into: Annotated[Path, typer.Option(help="A folder for the files.")] = Path(),
) -> None:
    """Fetch what a job left: its numbers as JSON, its losses as a picture."""
    connection = connect(context)
    job = connection.get(f"/v1/fine_tuning/jobs/{job_id}")
    if not job["result_files"]:
        raise CommandError(f"job {job_id} is {job['status']} and has left no files")
    for file_id in job["result_files"]:
        try:
            name = connection.get(f"/v1/files/{file_id}")["filename"]
        except CommandError as error:  # deleted; the others may be there
            out().print(plain(f"{file_id}: {error}"))
            continue
        path = into / f"{job_id}-{Path(name).name}"
        try:
            into.mkdir(parents=True, exist_ok=True)
            path.write_bytes(connection.content(file_id))
        except OSError as error:
            raise CommandError(f"cannot write {path}: {error}") from error
        out().print(plain(str(path)))
