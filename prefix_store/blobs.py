"""Immutable sealed files, the only way bytes reach the disk.

Order of writing: draft (O_EXCL, 0600) -> fsync -> rename -> fsync of the folder -> only then a row may
name it. A row without its file is a bug; a file without its row is litter that `sweep` removes.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterable
from pathlib import Path

from prefix_store.crypto import MasterKey, Place
from prefix_store.errors import Corrupt

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}")


class BlobWriter:
    """One file being written; `commit` makes it visible, anything else leaves nothing."""

    def __init__(self, draft: Path, final: Path, key: MasterKey, place: Place) -> None:
        self._draft, self._final = draft, final
        self._sealer = key.sealer(place)
        self._digest = hashlib.sha256()
        self.size = 0
        self._file = os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb")
        self._file.write(self._sealer.header)

    def write(self, piece: bytes) -> None:
        """Seal and append plaintext."""
        self._digest.update(piece)
        self.size += len(piece)
        self._file.write(self._sealer.update(piece))

    def commit(self) -> str:
        """Make the file durable and visible; return the SHA-256 of the plaintext in hex."""
        try:
            self._file.write(self._sealer.finish())
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            made = [
                folder for folder in (self._final.parent, self._final.parent.parent) if not folder.exists()
            ]
            self._final.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._draft.rename(self._final)
        except OSError:
            self.abort()
            raise
        for folder in made:
            _sync_folder(folder.parent)
        _sync_folder(self._final.parent)
        return self._digest.hexdigest()

    def abort(self) -> None:
        """Leave nothing behind; nothing happens after `commit`."""
        with contextlib.suppress(OSError):  # a full disk may refuse the last buffer too
            self._file.close()
        self._draft.unlink(missing_ok=True)


class Blobs:
    """Sealed files under `root/<tenant>/<owner>/<object>`; drafts under `root/tmp/<tenant>/<owner>/`."""

    def __init__(self, root: Path, key: MasterKey) -> None:
        self._root, self._key = root, key
        self._drafts = root / "tmp"
        self._drafts.mkdir(parents=True, exist_ok=True, mode=0o700)

    def writer(self, place: Place) -> BlobWriter:
        """Begin a file for `place`; its draft lies with its owner's, so that it goes with the owner."""
        final = self._path(place)
        folder = self._draft_folder(place)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        return BlobWriter(folder / secrets.token_hex(16), final, self._key, place)

    def put(self, place: Place, data: bytes) -> str:
        """Write `data` whole; return its SHA-256 in hex."""
        writer = self.writer(place)
        try:
            writer.write(data)
        except OSError:
            writer.abort()
            raise
        return writer.commit()

    def read(self, place: Place, sha256: str) -> bytes:
        """Return the plaintext.

        Raises:
            Corrupt: missing, changed, or not what the row's checksum says.
        """
        try:
            sealed = self._path(place).read_bytes()
        except FileNotFoundError:
            raise Corrupt("a stored file is missing") from None
        data = self._key.open(sealed, place)
        if not secrets.compare_digest(hashlib.sha256(data).hexdigest(), sha256):
            raise Corrupt("a stored file is not the one its row names")
        return data

    def delete(self, place: Place) -> None:
        """Remove a file; nothing if it is gone already."""
        self._path(place).unlink(missing_ok=True)

    def sync(self, places: Iterable[Place]) -> None:
        """Wait until removals from the folders of `places` are on the disk."""
        for folder in {self._path(place).parent for place in places}:
            if folder.exists():
                _sync_folder(folder)

    def delete_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove every file of an owner."""
        folder = self._path(Place(tenant_id, owner_id, "x")).parent
        shutil.rmtree(folder, ignore_errors=True)  # another process may be at it too
        if folder.exists():
            shutil.rmtree(folder)
        shutil.rmtree(self._draft_folder(Place(tenant_id, owner_id, "x")), ignore_errors=True)
        if folder.parent.exists():
            _sync_folder(folder.parent)

    def places(self) -> list[tuple[Place, float]]:
        """Every file and its age in seconds."""
        found = []
        now = time.clock_gettime(time.CLOCK_REALTIME)  # compared with file times, which are of this clock
        for path in self._root.glob("*/*/*"):
            if path.is_dir():  # of drafts
                continue
            try:
                age = now - path.stat().st_mtime
            except FileNotFoundError:
                continue  # removed meanwhile
            found.append((Place(path.parts[-3], path.parts[-2], path.parts[-1]), age))
        return found

    def sweep_drafts(self, older_than: float) -> None:
        """Remove drafts that a killed process left, `older_than` seconds old."""
        now = time.clock_gettime(time.CLOCK_REALTIME)
        for path in self._drafts.glob("*/*/*"):
            with contextlib.suppress(FileNotFoundError):  # finished meanwhile
                if now - path.stat().st_mtime > older_than:
                    path.unlink()

    def _draft_folder(self, place: Place) -> Path:
        return self._drafts / self._path(place).parent.relative_to(self._root)

    def _path(self, place: Place) -> Path:
        parts = (place.tenant_id, place.owner_id, place.object_id)
        if not all(_SAFE.fullmatch(part) for part in parts):
            raise ValueError("an id that is no file name")
        return self._root.joinpath(*parts)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
