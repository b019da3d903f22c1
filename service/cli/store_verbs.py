"""Verbs that open the store themselves, without a service: for the machine that holds the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.terminal import CommandError, out, plain

if TYPE_CHECKING:
    from prefix_store import Store, StoreSettings

DataDir = Annotated[
    Path, typer.Option(envvar="PREFIX_DATA_DIR", help="The data folder of the service and the worker.")
]
DatabaseUrl = Annotated[
    str | None, typer.Option(envvar="PREFIX_DATABASE_URL", help="The database, unless it is the default.")
]
SystemDatabaseUrl = Annotated[
    str | None,
    typer.Option(
        envvar="PREFIX_SYSTEM_DATABASE_URL", help="The same as the system role, where there is one."
    ),
]
OwnerDatabaseUrl = Annotated[
    str | None,
    typer.Option(envvar="PREFIX_OWNER_DATABASE_URL", help="The same as the role that owns the tables."),
]
DEFAULT_DATA_DIR = Path("prefixserve-data")


def migrate(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
    make_bucket: Annotated[
        bool, typer.Option("--make-bucket", help="Also the bucket of PREFIX_BLOBS_URL, if it is not there.")
    ] = False,
) -> None:
    """Bring the database up to date; with a system role, make and grant both roles. No service is needed.

    Opens the store directly.
    """
    from prefix_store import adopt_secrets  # noqa: PLC0415 - SQLAlchemy takes a second to load
    from prefix_store.migrate import migrate as bring_up  # noqa: PLC0415

    with _refusing():
        settings = _settings(data_dir, database_url, system_database_url, owner_database_url)
        bring_up(settings)
        adopt_secrets(settings)
        if make_bucket:
            _make_bucket(settings)
    out().print(plain(f"the store in {data_dir} is up to date"))


def audit_verify(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
) -> None:
    """Check the audit log's chain. Opens the store directly: no service is needed."""
    urls = (database_url, system_database_url, owner_database_url)
    with opened(data_dir, *urls, known=False) as store:
        entries = store.audit.verify()
    out().print(plain(f"{entries} audit entries, unbroken"))


def _make_bucket(settings: "StoreSettings") -> None:
    if settings.blobs_url is None:
        raise CommandError("--make-bucket needs PREFIX_BLOBS_URL=s3://bucket or s3://bucket/prefix")
    try:
        from prefix_store.bucket_versions import address_of, make_bucket  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise CommandError("PREFIX_BLOBS_URL needs the extra: pip install 'prefixserve[s3]'") from error

    make_bucket(
        address_of(
            settings.blobs_url, settings.blobs_endpoint, settings.blobs_region, settings.blobs_timeout_seconds
        )
    )


@contextmanager
def opened(data_dir: Path, *urls: str | None, known: bool = True) -> "Iterator[Store]":
    """The store, for the block; what it or the machine refuses is told in one line.

    `known`: refuse a folder that has no secrets yet, rather than make them.
    """
    from prefix_store import open_store  # noqa: PLC0415 - SQLAlchemy takes a second to load
    from prefix_store.secrets_folder import require_secrets  # noqa: PLC0415

    with _refusing():
        if known:
            require_secrets(data_dir)
        store = open_store(_settings(data_dir, *urls))
        try:
            yield store
        finally:
            store.close()


def _settings(
    data_dir: Path, database_url: str | None, system: str | None, owner: str | None
) -> "StoreSettings":
    from prefix_store import StoreSettings  # noqa: PLC0415 - SQLAlchemy takes a second to load

    urls = {"database_url": database_url, "system_database_url": system, "owner_database_url": owner}
    # What is not given may still lie in a file.
    given: dict[str, Any] = {name: url for name, url in urls.items() if url is not None}
    return StoreSettings(data_dir=data_dir, **given)


@contextmanager
def _refusing() -> Iterator[None]:
    from prefix_store.errors import StoreError  # noqa: PLC0415 - SQLAlchemy takes a second to load

    try:
        yield
    except (StoreError, ValueError) as error:  # ValueError: a setting that cannot be
        raise CommandError(str(error)) from error
    except OSError as error:
        where = "" if error.filename is None else f"{error.filename}: "
        raise CommandError(f"{where}{error.strerror or type(error).__name__}") from error
