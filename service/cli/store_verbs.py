"""Verbs that open the store themselves, without a service: for the machine that holds the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from service.cli.terminal import CommandError, out, plain

if TYPE_CHECKING:
    from prefix_store import Store

DataDir = Annotated[
    Path, typer.Option(envvar="PREFIX_DATA_DIR", help="The data folder of the service and the worker.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option(envvar="PREFIX_DATABASE_URL", help="The database, unless it is the default.")
]
DEFAULT_DATA_DIR = Path("prefixserve-data")


def migrate(data_dir: DataDir = DEFAULT_DATA_DIR, database_url: DatabaseUrl = None) -> None:
    """Bring the database up to date. Opens the store directly: no service is needed."""
    with _store(data_dir, database_url) as store:
        store.migrate()
    out().print(plain(f"the store in {data_dir} is up to date"))


def audit_verify(data_dir: DataDir = DEFAULT_DATA_DIR, database_url: DatabaseUrl = None) -> None:
    """Check the audit log's chain. Opens the store directly: no service is needed."""
    with _store(data_dir, database_url) as store:
        entries = store.audit.verify()
    out().print(plain(f"{entries} audit entries, unbroken"))


@contextmanager
def _store(data_dir: Path, database_url: str | None) -> "Iterator[Store]":
    # SQLAlchemy takes a second to load; only these verbs need it.
    from prefix_store import StoreSettings, open_store  # noqa: PLC0415
    from prefix_store.errors import StoreError  # noqa: PLC0415

    try:
        store = open_store(StoreSettings(data_dir=data_dir, database_url=database_url))
        try:
            yield store
        finally:
            store.close()
    except (StoreError, ValueError) as error:  # ValueError: a setting that cannot be
        raise CommandError(str(error)) from error
