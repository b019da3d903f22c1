"""A consistent copy of a store while its processes run: the database first, then the files that its copy names.

A file that went meanwhile is looked for in a newer copy of the database, until a copy and its files fit. Checkpoints are
not: beside a training there is always a newer one, and a run whose checkpoint is lacking begins anew and ends the same.
Secrets and the ledger of deletions are never copied: a backup opens nothing, and the ledger must outlive it.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from alembic.runtime.migration import MigrationContext
from sqlalchemy import select

from prefix_store.core import Core
from prefix_store.crypto import MasterKey, Place
from prefix_store.database_copies import NAMES, copied, counts
from prefix_store.db import SystemDatabase, db_now
from prefix_store.errors import StoreError
from prefix_store.failpoints import failpoint
from prefix_store.ledger import BACKUP, Ledger
from prefix_store.manifest import Manifest
from prefix_store.named_files import CHECKPOINT, named_files
from prefix_store.names import new_id
from prefix_store.sealed_files import path_of

FILES: Final = "blobs"
_TRIES = 5
_PIECE = 1 << 20


class Backups:
    """Make."""

    def __init__(self, core: Core, owner: SystemDatabase, ledger: Ledger) -> None:
        self._core, self._owner, self._ledger = core, owner, ledger

    def make(self, folder: Path) -> Manifest:
        """Copy everything but the secrets and the ledger into a folder that is empty or not there.

        Raises:
            StoreError: the folder is not empty or lies in the data; the role may not read everything; no pg_dump.
            Unavailable: the object storage, the database or the ledger cannot be reached.
        """
        _prepare(folder, self._core.settings.data_dir)
        with self._owner.read() as connection:
            now = float(connection.execute(select(db_now())).scalar_one())
        backup_id = new_id("bak")
        told = self._ledger.append(BACKUP, "", backup_id, now)
        dialect = self._owner.engine.dialect.name
        target = folder / NAMES[dialect]
        held: dict[str, str] = {}
        for _ in range(_TRIES):
            with copied(self._owner, self._core.settings.owner_url, target) as connection:
                found = named_files(connection)
                rows = counts(connection)
                revision = MigrationContext.configure(connection).get_current_revision()
            failpoint("backup.after_database")
            absent = [place for place in found if not self._copy(path_of(place), place, folder, held)]
            missing = sorted(path_of(place) for place in absent if found[place].kind != CHECKPOINT)
            if not missing:
                break
        for path in held.keys() - {path_of(place) for place in found}:  # of an earlier try
            (folder / FILES / path).unlink()
            del held[path]
        manifest = Manifest(
            id=backup_id,
            made_at=now,
            dialect=dialect,
            revision=str(revision),
            database=digest_of(target),
            rows=rows,
            files=dict(sorted(held.items())),
            missing=missing,
            key_id=MasterKey(self._core.secrets.master_key).key_id.hex(),
            ledger=told.mac,
        )
        sync_tree(folder)
        failpoint("backup.before_manifest")
        manifest.write(folder, self._core.secrets.pepper)
        sync_tree(folder)
        return manifest

    def _copy(self, path: str, place: Place, folder: Path, held: dict[str, str]) -> bool:
        """Whether the copy has the file."""
        if path in held:
            return True
        sealed = self._core.blobs.files.read(place)
        if sealed is None:
            return False
        target = folder / FILES / path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            file.write(sealed)
        held[path] = hashlib.sha256(sealed).hexdigest()
        return True


def digest_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def sync_tree(folder: Path) -> None:
    """Return once everything below a folder is on the disk."""
    for path in [*folder.rglob("*"), folder]:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _prepare(folder: Path, data_dir: Path) -> None:
    own = data_dir.resolve()
    if folder.resolve() == own or own / "data" in (folder.resolve(), *folder.resolve().parents):
        raise StoreError(f"{folder} is the store itself; name a folder elsewhere")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if any(folder.iterdir()):
        raise StoreError(f"{folder} is not empty; name a new folder for each backup")
    folder.chmod(0o700)
