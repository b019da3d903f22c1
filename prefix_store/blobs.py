"""Immutable sealed files, the only way bytes reach a disk or an object storage.

A file is there, durable, before a row may name it. A row without its file is a bug; a file without its row is
litter that the janitor removes. Who keeps the files is `sealed_files.SealedFiles`.
"""

import errno
import hashlib
import logging
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from threading import Lock

from prefix_store.blob_cache import BlobCache
from prefix_store.crypto import MasterKey, Place
from prefix_store.errors import Corrupt, NoRoom, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.sealed_files import Draft, SealedFiles

log = logging.getLogger(__name__)

_MANY = 10_000
_moving = Lock()  # a file is in memory twice while it is moved: one at a time is


@contextmanager
def _disk() -> Iterator[None]:
    """A disk that is full or failing is away as a storage elsewhere is: nobody who wants to write is to blame."""
    try:
        yield
    except FileExistsError:  # a bug, which is not to be tried again
        raise
    except OSError as error:
        log.warning("a sealed file cannot be written: %s", error.strerror)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise NoRoom from error
        raise Unavailable("files cannot be written now") from error


class BlobWriter:
    """One file being written; `commit` makes it visible, anything else leaves nothing."""

    def __init__(self, draft: Draft, key: MasterKey, place: Place) -> None:
        self._draft, self._key, self.place = draft, key, place
        self._sealer = key.sealer(place)
        self._digest = hashlib.sha256()
        self.size = 0
        self._draft.write(self._sealer.header)

    def write(self, piece: bytes) -> None:
        """Seal and append plaintext; Unavailable as in `commit`."""
        self._digest.update(piece)
        self.size += len(piece)
        with _disk():
            self._draft.write(self._sealer.update(piece))

    def commit(self) -> str:
        """Make the file durable and visible; return the SHA-256 of the plaintext in hex.

        Raises:
            Unavailable: the object storage does not answer, or the disk takes nothing more; nothing that anybody names
                was stored.
            Unanswered: one who writes it anew, for another place, may: `moved`.
            NoRoom: the disk is full.
        """
        try:
            with _disk():
                failpoint("draft.before_seal")
                self._draft.write(self._sealer.finish())
        except Unavailable:
            self.abort()
            raise
        with _disk():
            self._draft.commit()
        return self._digest.hexdigest()

    def moved(self, draft: Draft, place: Place) -> "BlobWriter":
        """The same file for another place, behind a commit that was Unanswered; this one is over."""
        writer = BlobWriter(draft, self._key, place)
        with _moving:
            writer.write(self._key.open(self._draft.sealed(), self.place))
        self.abort()
        return writer

    def abort(self) -> None:
        """Leave nothing behind; nothing happens after `commit`."""
        self._draft.abort()


class Blobs:
    """Seals what is written, opens and checks what is read.

    Args:
        files: keeps the sealed bytes.
        key: seals them.
        cache: sealed prefixes that other processes read lately; None: there is none.
    """

    def __init__(self, files: SealedFiles, key: MasterKey, cache: BlobCache | None = None) -> None:
        self.files, self._key, self._cache = files, key, cache
        self._unconfirmed: set[Place] = set()  # their files are gone, copies of them may lie in the cache

    def writer(self, place: Place) -> BlobWriter:
        """Begin a file for `place`; Unavailable if the disk takes none."""
        with _disk():
            return BlobWriter(self.files.draft(place), self._key, place)

    def put(self, place: Place, data: bytes) -> str:
        """Write `data` whole; return its SHA-256 in hex."""
        writer = self.writer(place)
        try:
            writer.write(data)
            return writer.commit()
        except Unavailable:
            writer.abort()
            raise

    def moved(self, writer: BlobWriter, place: Place) -> BlobWriter:
        """See `BlobWriter.moved`."""
        with _disk():
            return writer.moved(self.files.draft(place), place)

    def read(self, place: Place, sha256: str, *, stands: Callable[[], bool] | None = None) -> bytes:
        """Return the plaintext; with `stands` it looks into the cache first and leaves the sealed bytes there.

        Args:
            place: of the file.
            sha256: of the plaintext, as the row says.
            stands: reads in the database that the file may be served, as whoever gives it has just done. It is asked
                again once the bytes lie in the cache, so that what was removed meanwhile does not stay there
                whatever has become of the removal's mark: one of the two sees the other.

        Raises:
            Corrupt: missing, changed, or not what the row's checksum says.
            Unavailable: the object storage does not answer.
        """
        cache = self._cache if stands is not None else None
        cached = None if cache is None else cache.get(place)
        if cache is not None and cached is not None:
            try:
                return self.opened(cached, place, sha256)
            except Corrupt:  # what lies in a cache is no reason to fail
                cache.forget(place)
        sealed = self.files.read(place)
        if sealed is None:
            raise Corrupt("a stored file is missing")
        data = self.opened(sealed, place, sha256)
        if cache is not None and cached is None:
            cache.put(place, sealed)
            kept = False
            try:
                kept = stands is not None and stands()
            finally:
                if not kept:
                    cache.forget(place)
        return data

    def delete(self, place: Place) -> bool:
        """Remove a file, nothing if it is gone already; whether no cache can hold it any more, else ask again."""
        if place not in self._unconfirmed:
            self.files.delete(place)
        if self._cache is None or self._cache.forget(place):
            self._unconfirmed.discard(place)
            return True
        if len(self._unconfirmed) >= _MANY:  # a file that is asked for once more is no harm
            self._unconfirmed.clear()
        self._unconfirmed.add(place)
        return False

    def discard(self, places: Iterable[Place]) -> bool:
        """Remove files that no row names and none ever will; whether they are gone for good, else the sweep takes them."""
        of = list(places)
        try:
            for place in of:
                self.files.delete(place)
            self.files.sync(of)
        except (Unavailable, OSError):
            log.warning("files that no row names are left to the sweep")
            return False
        return True

    def sync(self, places: Iterable[Place]) -> None:
        """Return once removals of `places` will outlast a crash."""
        self.files.sync(places)

    def delete_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove every file of an owner."""
        if self._cache is not None:
            self._cache.forget_owner(tenant_id, owner_id)
        self.files.delete_owner(tenant_id, owner_id)

    def away(self) -> bool:
        """Whether the storage did not answer when it was last asked, so that asking for many files is no use now."""
        return self.files.away()

    def forgotten(self) -> bool:
        """Whether no cache can hold what this process has removed."""
        return self._cache is None or self._cache.settle()

    def places(self) -> list[tuple[Place, float]]:
        """Every file and its age in seconds."""
        return self.files.places()

    def sweep_drafts(self, older_than: float) -> None:
        """Remove what killed processes left half written, `older_than` seconds old."""
        self.files.sweep_drafts(older_than)

    def opened(self, sealed: bytes, place: Place, sha256: str) -> bytes:
        """The plaintext of a file's bytes; Corrupt as in `read`."""
        data = self._key.open(sealed, place)
        if not secrets.compare_digest(hashlib.sha256(data).hexdigest(), sha256):
            raise Corrupt("a stored file is not the one its row names")
        return data
