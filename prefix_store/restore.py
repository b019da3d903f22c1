"""A backup put into an empty store, and the ledger of deletions applied, before anything can be served.

Until the last line the schema says that it is being restored, so that no process starts on it (`migrate.RESTORING`).
What was cut short is not gone on with: empty it and begin again.
"""

import hashlib
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import delete, select
from sqlalchemy.engine import make_url

from prefix_store.backup import FILES, digest_of
from prefix_store.core import Core
from prefix_store.crypto import MasterKey, Place
from prefix_store.database_copies import NAMES, load, read_only
from prefix_store.db import SystemDatabase
from prefix_store.engines import open_engine
from prefix_store.errors import StoreError
from prefix_store.failpoints import failpoint
from prefix_store.installation import Installation
from prefix_store.ledger import Ledger, LedgerEntry
from prefix_store.litter import note
from prefix_store.local_files import sync_folder
from prefix_store.manifest import Manifest, read_manifest
from prefix_store.migrate import alone, finish_restore, migrate_restored, start_restore
from prefix_store.replay import Replay
from prefix_store.sealed_files import path_of, place_of
from prefix_store.tables import checkpoints
from prefix_store.unfinished import UnfinishedErasures


@dataclass(frozen=True, slots=True)
class Restored:
    """What came of a restore: deletions of the ledger that found something, erasures that are still open."""

    manifest: Manifest
    replayed: int
    open_erasures: int


class Restore:
    """Run once, on an empty store whose secrets are those of the backup."""

    def __init__(
        self,
        core: Core,
        system: SystemDatabase,
        owner: SystemDatabase,
        ledger: Ledger,
        installation: Installation,
    ) -> None:
        self._core, self._system, self._owner, self._ledger = core, system, owner, ledger
        self._installation = installation

    def run(self, folder: Path, ledgers: Sequence[Path] = (), *, without_ledger: bool = False) -> Restored:
        """Restore the backup in `folder`.

        Args:
            folder: what `Backups.make` wrote.
            ledgers: folders with ledgers of other machines, or of the machine that was lost; copied to this one's.
            without_ledger: restore though the ledger is lost or ends before the backup.

        Raises:
            StoreError: no backup or a changed one, other secrets, a store that is not empty, or no ledger that
                goes up to the backup.
            Unavailable: database or object storage do not answer.
        """
        secrets = self._core.secrets
        manifest = read_manifest(folder, secrets.pepper, MasterKey(secrets.master_key).key_id)
        dialect = self._owner.engine.dialect.name
        if manifest.dialect != dialect:
            raise StoreError(f"the backup is of {manifest.dialect}, PREFIX_DATABASE_URL names {dialect}")
        copy = folder / NAMES[dialect]
        _check(copy, manifest.database)
        entries = self._entries(ledgers, manifest, without_ledger=without_ledger)
        if self._core.blobs.places():
            raise StoreError(
                "sealed files are there already; name an empty data folder or prefix of a bucket"
            )
        with ExitStack() as stack:
            if self._owner.is_sqlite:
                stack.enter_context(alone(self._owner, self._core.settings.data_dir))
                self._place_sqlite(copy)
            else:
                start_restore(self._owner, manifest.revision)
                load(self._core.settings.owner_url, copy)
                migrate_restored(self._owner, self._core.settings, manifest.revision)
            failpoint("restore.after_database")
            self._copy_files(folder / FILES, manifest)
            self._forget_checkpoints(manifest)
            failpoint("restore.after_files")
            replayed = Replay(self._core).apply(entries)
            failpoint("restore.after_ledger")
            still = UnfinishedErasures(self._core, self._system).resume()
            self._installation.claim(secrets)  # the manifest was sealed with them; an older backup has no row
            finish_restore(self._owner)
        return Restored(manifest, replayed, still)

    def _entries(
        self, ledgers: Sequence[Path], manifest: Manifest, *, without_ledger: bool
    ) -> list[LedgerEntry]:
        pepper = self._core.secrets.pepper
        others = [ledger for ledger in ledgers if ledger.resolve() != self._ledger.folder.resolve()]
        for other in others:
            if not Ledger(other, pepper).entries() and not without_ledger:
                raise StoreError(f"{other} holds no ledger of deletions")
        for other in others:
            _bring(other, self._ledger.folder)
        entries = self._ledger.entries()
        if not without_ledger and manifest.ledger not in {entry.mac for entry in entries}:
            raise StoreError(
                "no ledger of deletions that goes up to this backup: what was deleted since would come back; give the"
                " folder of the ledger with --ledger"
            )
        return entries

    def _place_sqlite(self, copy: Path) -> None:
        """Put the copy in place with its schema marked already."""
        final = Path(str(make_url(self._core.settings.url).database))
        if _has_tables(final):
            raise StoreError(f"{final} holds a database already; name an empty data folder")
        draft = final.with_name(f"{final.name}.restoring")
        _remove(draft)
        final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
            with copy.open("rb") as source:
                shutil.copyfileobj(source, file)
            file.flush()
            os.fsync(file.fileno())
        database = SystemDatabase(open_engine(f"sqlite:///{draft}", self._core.settings.waits))
        try:
            migrate_restored(database, self._core.settings, None)
        finally:
            database.close()  # which writes its log into the file
        _remove(final)  # which whoever opened the store made, and which has no table
        draft.rename(final)

    def _copy_files(self, source: Path, manifest: Manifest) -> None:
        for path, sha256 in manifest.files.items():
            place = place_of(path)
            sealed = (source / path).read_bytes() if place is not None and (source / path).exists() else b""
            if place is None or hashlib.sha256(sealed).hexdigest() != sha256:
                raise StoreError(f"{path} of the backup is missing or was changed; take another backup")
            draft = self._core.blobs.files.draft(place)
            try:
                draft.write(sealed)
                draft.commit()
            finally:
                draft.abort()

    def _forget_checkpoints(self, manifest: Manifest) -> None:
        """Of checkpoints that were replaced while the backup was made: their runs begin anew.

        The one of two files that was copied is then nobody's, and was perhaps learned from somebody who is erased.
        """
        columns = (checkpoints.c.tenant_id, checkpoints.c.owner_id, checkpoints.c.job_id)
        files = (checkpoints.c.object_id, checkpoints.c.prefix_object_id)
        with self._owner.write() as connection:
            for *job, state, prefix in connection.execute(select(*columns, *files)).all():
                places = [Place(job[0], job[1], object_id) for object_id in (state, prefix) if object_id]
                copied = [place for place in places if path_of(place) in manifest.files]
                if copied != places:
                    mine = [column == value for column, value in zip(columns, job, strict=True)]
                    connection.execute(delete(checkpoints).where(*mine))
                    note(connection, copied)


def _check(copy: Path, sha256: str) -> None:
    if not copy.exists() or digest_of(copy) != sha256:
        raise StoreError(f"{copy.name} of the backup is missing or was changed; take another backup")


def _bring(other: Path, folder: Path) -> None:
    """Keep another ledger's files beside ours: older backups need them too."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in sorted(other.glob("*.jsonl")):
        target = folder / f"before-{digest_of(path)[:16]}.jsonl"
        if not target.exists():
            draft = target.with_suffix(".draft")
            shutil.copyfile(path, draft)
            draft.chmod(0o600)
            with draft.open("rb") as file:
                os.fsync(file.fileno())
            draft.rename(target)
            sync_folder(folder)


def _has_tables(path: Path) -> bool:
    if not path.exists() or path.stat().st_size == 0:
        return False
    with read_only(path) as connection:
        return bool(connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())


def _remove(draft: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
