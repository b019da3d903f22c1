"""The tree of verbs. Owns the global options; each verb lives in the module of its noun."""

from typing import Annotated

import typer

from service.cli import (
    bench,
    copies,
    datasets,
    generation,
    jobs,
    prefixes,
    processes,
    reports,
    store_verbs,
    tenancy,
)
from service.cli.target import DEFAULT_URL, Target

app = typer.Typer(
    name="prefixserve",
    help="Personal GPT-2 prefixes on one frozen model: train, generate, erase.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)


@app.callback()
def options(
    context: typer.Context,
    url: Annotated[str, typer.Option(envvar="PREFIX_URL", help="The service's address.")] = DEFAULT_URL,
    api_key: Annotated[
        str | None, typer.Option(envvar="PREFIX_API_KEY", help="The tenant's or user's key.")
    ] = None,
) -> None:
    """Personal GPT-2 prefixes on one frozen model: train, generate, erase."""
    context.obj = Target(url, api_key)


app.add_typer(tenancy.tenants)
app.add_typer(tenancy.users)
app.add_typer(tenancy.keys)
app.add_typer(datasets.datasets)
app.command()(jobs.train)
app.add_typer(jobs.jobs)
app.command()(generation.generate)
app.add_typer(prefixes.prefixes)
app.command()(reports.models)
app.command()(reports.usage)
app.command()(bench.bench)
app.command()(processes.serve)
app.command()(processes.worker)
app.command()(processes.demo)
app.command()(store_verbs.migrate)
app.command()(store_verbs.audit_verify)
app.command()(copies.fsck)
app.command()(copies.backup)
app.command()(copies.restore)
app.command()(copies.ledger)
