"""Sealed files in a bucket of S3 or of a store that speaks like it.

Each file is one conditional PUT (`If-None-Match: *`, RFC 9110 section 13.1.2) with a SHA-256 that the store checks, so
it is whole or not there, and never written over. It goes through obstore. Listing versions and unfinished multipart
uploads, which obstore cannot, is in `bucket_versions.py`. Whatever the store does not answer in time is `Unavailable`.
"""

import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from math import inf
from pathlib import Path
from threading import Semaphore
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, GenericError
from obstore.store import S3Store

from prefix_store.breaker import Breaker, Shut
from prefix_store.bucket_versions import BucketAddress, BucketVersions, credentials_of, unavailable
from prefix_store.crypto import Place
from prefix_store.errors import Unanswered, Unavailable, Unsent
from prefix_store.failpoints import failpoint
from prefix_store.sealed_files import path_of, place_of

_IN_MEMORY = 1 << 20
_LARGE = 8 << 20
_LARGE_AT_ONCE = 2  # of a process: else as many as threads store files would each have one in memory
_CONNECT = timedelta(seconds=3)
_RETRIES = 2
_PAUSE_S = 1.0
_NO_BUCKET = "NoSuchBucket"


class ObjectDraft:
    """Sealed bytes of one file until they are sent; a file of no name on this machine where they are many.

    It goes with its process, so nothing is left to be swept, on whatever machine it was.
    """

    def __init__(self, storage: "ObjectStorage", place: Place, scratch: Path) -> None:
        self._storage, self._place = storage, place
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(scratch))  # noqa: SIM115 - closed at its end

    def write(self, sealed: bytes) -> None:
        """Append."""
        self._file.write(sealed)

    def commit(self) -> None:
        """Send the file, once.

        Raises:
            Unanswered: the store is there, but whether the file is or comes is not known; `sealed` has it still.
            Unavailable: whether it is there is not known; no row may name it.
            FileExistsError: another file has this id.
        """
        try:
            with self._storage.room(self._file.tell()):
                self._storage.create(self._place, self.sealed())
        except Unanswered:
            raise
        except BaseException:
            self.abort()
            raise
        self.abort()

    def sealed(self) -> bytes:
        """What was written."""
        self._file.seek(0)
        return self._file.read()

    def abort(self) -> None:
        """Let go of the bytes."""
        self._file.close()


class ObjectStorage:
    """Objects `<prefix>/<tenant>/<owner>/<object>` of one bucket.

    Args:
        address: bucket, prefix, endpoint, region and how long a request may take.
        scratch: a folder of this machine, for sealed bytes on their way.
    """

    def __init__(self, address: BucketAddress, scratch: Path) -> None:
        self._store, self._scratch = _store(address.server, _RETRIES), scratch
        # A PUT that was cut may live on in the store. Sent again, it could land when its second's object is removed.
        self._once = _store(address.server, 0)
        self._prefix, self._seconds = address.prefix, address.seconds
        # One that waits for its turn, is sent once, is looked for, and may then still be at the store's own door.
        self.late_seconds = 4 * address.seconds
        self._large = Semaphore(_LARGE_AT_ONCE)
        self._breaker = Breaker(_PAUSE_S, _PAUSE_S)
        self._versions = BucketVersions(address, self._breaker)

    def away(self) -> bool:
        """Whether the store did not answer when it was last asked."""
        return self._breaker.shut

    def draft(self, place: Place) -> ObjectDraft:
        """Begin a file."""
        path_of(place)
        return ObjectDraft(self, place, self._scratch)

    @contextmanager
    def room(self, size: int) -> Iterator[None]:
        """Within the block so many bytes may be in memory at once: a create-only PUT is sent in one piece.

        Raises:
            Unavailable: others that are as large take as long as a request may.
        """
        if size <= _LARGE:
            yield
            return
        if not self._large.acquire(timeout=self._seconds):
            raise Unsent(str(unavailable("large files wait for each other")))
        try:
            yield
        finally:
            self._large.release()

    def create(self, place: Place, sealed: bytes) -> None:
        """Store an object that is not there yet; it is sent once.

        Raises:
            Unanswered, Unavailable: see `ObjectDraft.commit`.
            FileExistsError: another object has this name.
        """
        try:
            with self._reached():
                self._put(self._key(place), sealed)
        except AlreadyExistsError:  # by a PUT of ours that its client sent again
            try:
                found = self.read(place)
            except Unsent as error:  # which the reading was; the PUT was not
                raise Unavailable(str(error)) from None
            if not secrets.compare_digest(found or b"", sealed):
                raise FileExistsError("another file has this id") from None

    def _put(self, key: str, sealed: bytes) -> None:
        began = time.monotonic()
        try:
            failpoint("object.before_put")
            obstore.put(self._once, key, sealed, mode="create")
            failpoint("object.after_put")
        except (GenericError, OSError):
            if time.monotonic() - began > self._seconds / 2:
                raise
            # One connection that was cut is no store that is away: that is asked, by a request that may be sent again.
            found = self._bytes(key)
            if found is None:
                raise Unanswered(str(unavailable("a PUT was cut"))) from None
            if not secrets.compare_digest(found, sealed):
                raise FileExistsError("another file has this id") from None

    def read(self, place: Place) -> bytes | None:
        """An object's bytes; None if there is none."""
        with self._reached():
            return self._bytes(self._key(place))

    def _bytes(self, key: str) -> bytes | None:
        try:
            return bytes(obstore.get(self._store, key).bytes())
        except FileNotFoundError as error:
            if _NO_BUCKET in str(error):
                raise
            return None

    def delete(self, place: Place) -> None:
        """Remove every version of an object and what is unfinished of it; nothing if there is none."""
        failpoint("object.before_delete")
        self._versions.remove(self._key(place))

    def sync(self, places: Iterable[Place]) -> None:
        """The store answers a removal when it is durable."""

    def delete_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove every version of every object of an owner, and what is unfinished."""
        anything = self._key(Place(tenant_id, owner_id, "x"))
        self._versions.remove(anything[:-1], below=True)

    def places(self) -> list[tuple[Place, float]]:
        """Every object and the age in seconds of its newest version, those too that a plain delete has only hidden."""
        start = len(self._prefix)
        ages: dict[Place, float] = {}
        for version in self._versions.below(self._prefix):
            place = place_of(version.key[start:])
            if place is not None:
                ages[place] = min(ages.get(place, inf), version.age)
        return list(ages.items())

    def present(self) -> set[Place]:
        """Every object that a plain delete has not hidden."""
        start = len(self._prefix)
        with self._reached():
            pages = list(obstore.list(self._store, self._prefix or None))
        return {place for page in pages for meta in page if (place := place_of(meta["path"][start:]))}

    def sweep_drafts(self, older_than: float) -> None:
        """End multipart uploads that somebody left unfinished; this code begins none."""
        self._versions.end_uploads(self._prefix, older_than=older_than)

    def _key(self, place: Place) -> str:
        return self._prefix + path_of(place)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            with self._breaker.asking(GenericError, OSError):
                yield
        except Shut:
            raise Unsent(str(unavailable())) from None
        except AlreadyExistsError:
            raise
        except (BaseError, OSError) as error:  # its message names the object; ours does not
            known = _NO_BUCKET if _NO_BUCKET in str(error) else type(error).__name__
            raise unavailable(known) from None


@cache
def _store(address: BucketAddress, retries: int) -> S3Store:
    """One for all of a process: it holds the connections."""
    config: Any = {"region": address.region, "checksum_algorithm": "SHA256"}
    if address.endpoint is not None:
        config["endpoint"] = address.endpoint
    seconds = timedelta(seconds=address.seconds)
    return S3Store(
        address.bucket,
        config=config,
        credential_provider=credentials_of(address),
        client_options={
            "timeout": seconds,
            "connect_timeout": min(_CONNECT, seconds),
            "allow_http": (address.endpoint or "").startswith("http://"),
        },
        retry_config={"max_retries": retries, "retry_timeout": seconds},
    )
