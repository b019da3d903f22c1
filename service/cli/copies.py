"""Verbs of the operator that look at the whole store: fsck, backup, restore, ledger. They open it themselves."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from service.cli.store_verbs import (
    DEFAULT_DATA_DIR,
    DatabaseUrl,
    DataDir,
    OwnerDatabaseUrl,
    SystemDatabaseUrl,
    opened,
)
from service.cli.terminal import CommandError, moment, out, plain

if TYPE_CHECKING:
    from prefix_store.fsck import Finding, Findings

_SHOWN = 100


def fsck(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Also open every file and check its checksum.")
    ] = False,
    grace: Annotated[
        float, typer.Option(help="Seconds that a file may wait for its row before it is litter.", min=0.0)
    ] = 3600.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare rows and files; change nothing; exit 1 if a row's file is missing or damaged.

    Opens the store directly.
    """
    with opened(data_dir, database_url, system_database_url, owner_database_url) as store:
        store.check_migrated()
        found = store.fsck.look(deep=deep, grace_seconds=grace)
    if as_json:
        out().print(plain(json.dumps(_findings(found))))
    else:
        _print(found)
    if not found.sound:
        raise typer.Exit(1)


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder for this backup.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
) -> None:
    """Copy database and files while processes run; never the secrets.

    Opens the store directly.
    """
    with opened(data_dir, database_url, system_database_url, owner_database_url) as store:
        store.check_migrated()
        made = store.backups.make(folder)
        secrets, ledger = data_dir / "secrets", store.settings.ledger_folder
    for path in made.missing:
        out().print(plain(f"missing: {path}"))
    out().print(
        plain(f"backup {made.id}: {sum(made.rows.values())} rows, {len(made.files)} files in {folder}")
    )
    out().print(
        plain(
            f"not in it, and needed to restore: {secrets} (keep a copy where no backup lies) and {ledger} (copy it on"
            " after every deletion, never back to an older state)"
        )
    )
    if made.missing:
        raise CommandError(f"{len(made.missing)} files that rows name are not there; run `prefixserve fsck`")


def restore(
    folder: Annotated[Path, typer.Argument(help="What `prefixserve backup` wrote.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
    ledger: Annotated[
        list[Path] | None, typer.Option(help="A folder with a ledger of deletions; may be repeated.")
    ] = None,
    without_ledger: Annotated[
        bool,
        typer.Option(
            "--without-ledger", help="The ledger is lost: what was deleted since the backup comes back."
        ),
    ] = False,
) -> None:
    """Put a backup into an empty store and delete again what was deleted since.

    Opens the store directly.
    """
    with opened(data_dir, database_url, system_database_url, owner_database_url) as store:
        done = store.restore.run(folder, ledger or (), without_ledger=without_ledger)
    made = done.manifest
    out().print(
        plain(
            f"backup {made.id} of {moment(made.made_at)} UTC: {sum(made.rows.values())} rows, {len(made.files)} files"
        )
    )
    out().print(
        plain(f"{done.replayed} deletions of the ledger applied, {done.open_erasures} erasures still open")
    )


def ledger(
    data_dir: DataDir = DEFAULT_DATA_DIR,
    database_url: DatabaseUrl = None,
    system_database_url: SystemDatabaseUrl = None,
    owner_database_url: OwnerDatabaseUrl = None,
    object_id: Annotated[str | None, typer.Option("--id", help="Entries that name this id alone.")] = None,
) -> None:
    """Check the ledger of deletions and print it, one JSON object a line.

    Opens the store directly.
    """
    with opened(data_dir, database_url, system_database_url, owner_database_url) as store:
        entries = store.ledger.entries()
    for entry in entries:
        if object_id in {None, entry.object_id, entry.tenant_id}:
            told = {"at": moment(entry.at), "action": entry.action}
            ids = {"tenant": entry.tenant_id, "id": entry.object_id}
            out().print(plain(json.dumps({"number": entry.number, **told, **ids})))


def _findings(found: "Findings") -> dict[str, Any]:
    counts = {"sound": found.sound, "deep": found.deep, "rows": found.rows, "files": found.files}
    lists = {"missing": found.missing, "damaged": found.damaged, "litter": found.litter}
    return counts | {"young": found.young} | {name: _listed(those) for name, those in lists.items()}


def _listed(findings: "Iterable[Finding]") -> list[dict[str, str]]:
    return [
        {
            "kind": finding.kind,
            "tenant": finding.place.tenant_id,
            "owner": finding.place.owner_id,
            "object": finding.place.object_id,
        }
        for finding in findings
    ]


def _print(found: "Findings") -> None:
    read = "each read" if found.deep else "none read; --deep reads them"
    out().print(plain(f"{found.rows} files named by rows, {found.files} files there ({read})"))
    told = (
        ("missing", found.missing, "rows without their file"),
        ("damaged", found.damaged, "files that do not open or are not what their row says"),
        ("litter", found.litter, "files without a row: the service's next sweep removes them"),
    )
    for name, those, meaning in told:
        out().print(plain(f"{len(those)} {meaning}"))
        for one in _listed(those[:_SHOWN]):
            kind = f"{one['kind']} " if one["kind"] else ""
            out().print(plain(f"  {name}: {kind}{one['tenant']}/{one['owner']}/{one['object']}"))
        if len(those) > _SHOWN:
            out().print(plain(f"  and {len(those) - _SHOWN} more; --json lists all"))
    if found.young:
        out().print(plain(f"{found.young} files so young that their rows may still come"))
