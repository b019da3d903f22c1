"""Sealed files in a folder of this machine.

Order of writing: draft (O_EXCL, 0600) -> fsync -> rename -> fsync of the folder.
"""

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from prefix_store.crypto import Place
from prefix_store.failpoints import failpoint
from prefix_store.misses import Misses
from prefix_store.sealed_files import path_of


class LocalDraft:
    """One file being written beside its place; see `sealed_files.Draft`."""

    def __init__(self, draft: Path, final: Path) -> None:
        self._draft, self._final = draft, final
        self._file = os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")

    def write(self, sealed: bytes) -> None:
        """Append."""
        self._file.write(sealed)

    def commit(self) -> None:
        """Sync, rename, sync the folder."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            failpoint("file.after_sync")
            made = [
                folder for folder in (self._final.parent, self._final.parent.parent) if not folder.exists()
            ]
            self._final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._draft.rename(self._final)
        except OSError:
            self.abort()
            raise
        failpoint("file.after_rename")
        for folder in made:
            sync_folder(folder.parent)
        sync_folder(self._final.parent)

    def sealed(self) -> bytes:
        """What was written."""
        self._file.flush()
        return self._draft.read_bytes()

    def abort(self) -> None:
        """Remove the draft."""
        with contextlib.suppress(OSError):  # a full disk may refuse the last buffer too
            self._file.close()
        self._draft.unlink(missing_ok=True)


class LocalFiles:
    """Files under `root/<tenant>/<owner>/<object>`; drafts under `root/tmp/<tenant>/<owner>/`."""

    late_seconds = 5.0  # a disk that hangs: what a dead process began is done or never will be

    def __init__(self, root: Path) -> None:
        self.root = root
        self._drafts = root / "tmp"
        self._drafts.mkdir(parents=True, exist_ok=True, mode=0o700)

    def away(self) -> bool:
        """A folder is there; a disk that fails says so at once."""
        return False

    def draft(self, place: Place) -> LocalDraft:
        """Begin a file; its draft lies with its owner's, so that it goes with the owner."""
        final = self.path(place)
        folder = self._draft_folder(place)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # With its object's name, so that it goes with the object if its writer is killed.
        return LocalDraft(folder / f"{place.object_id}.{secrets.token_hex(16)}", final)

    def read(self, place: Place) -> bytes | None:
        """A file's bytes; None if there is none."""
        try:
            return self.path(place).read_bytes()
        except FileNotFoundError:
            return None

    def delete(self, place: Place) -> None:
        """Remove a file and its drafts, these first since they may become the file; nothing if it is gone already."""
        for draft in self._draft_folder(place).glob(f"{place.object_id}.*"):
            draft.unlink(missing_ok=True)
        self.path(place).unlink(missing_ok=True)

    def sync(self, places: Iterable[Place]) -> None:
        """Wait until removals from the folders of `places` are on the disk."""
        of = list(places)
        for folder in {self.path(place).parent for place in of} | {self._draft_folder(place) for place in of}:
            if folder.exists():
                sync_folder(folder)

    def delete_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove every file and draft of an owner."""
        folder = self.path(Place(tenant_id, owner_id, "x")).parent
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too
        if folder.exists():
            shutil.rmtree(folder)
        shutil.rmtree(self._draft_folder(Place(tenant_id, owner_id, "x")), ignore_errors=True)
        if folder.parent.exists():
            sync_folder(folder.parent)

    def places(self) -> list[tuple[Place, float]]:
        """Every file and its age in seconds."""
        found = []
        now = time.clock_gettime(time.CLOCK_REALTIME)  # compared with file times, which are of this clock
        for path in self.root.glob("*/*/*"):
            if path.is_dir():  # of drafts
                continue
            try:
                age = now - path.stat().st_mtime
            except FileNotFoundError:
                continue  # removed meanwhile
            found.append((Place(path.parts[-3], path.parts[-2], path.parts[-1]), age))
        return found

    def present(self) -> set[Place]:
        """Every file that can be read."""
        return {place for place, _ in self.places()}

    def sweep_drafts(self, older_than: float) -> None:
        """Remove drafts that a killed process left, `older_than` seconds old."""
        now = time.clock_gettime(time.CLOCK_REALTIME)
        misses = Misses()
        for path in self._drafts.glob("*/*/*"):
            with misses.passed(), contextlib.suppress(FileNotFoundError):  # finished meanwhile
                if now - path.stat().st_mtime > older_than:
                    path.unlink()
        misses.tell()

    def path(self, place: Place) -> Path:
        """Where a file lies."""
        return self.root / path_of(place)

    def _draft_folder(self, place: Place) -> Path:
        return self._drafts / self.path(place).parent.relative_to(self.root)


def make_folder(folder: Path) -> None:
    """Make a folder, mode 0700, and those above it that lack; return once they are on the disk."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for path in made:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until what was made, renamed or removed in it is on the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
