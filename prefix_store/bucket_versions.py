"""Every version of an object and every unfinished multipart upload: found and removed.

obstore lists neither, so this asks botocore, which also finds the credentials for both where AWS's own tools look: the
environment (`AWS_ACCESS_KEY_ID` and so on), `AWS_SHARED_CREDENTIALS_FILE`, the machine's role. No setting holds them.
They are looked for anew every few minutes (`BucketCredentials`).
"""

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import mktime_tz, parsedate_tz
from functools import cache
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from prefix_store.breaker import Breaker, Shut
from prefix_store.bucket_credentials import BucketCredentials
from prefix_store.errors import StoreError, Unavailable
from prefix_store.misses import Misses

log = logging.getLogger(__name__)

_CONNECT_S = 3.0
_ATTEMPTS = 3
_AT_ONCE = 1000  # the most that DeleteObjects takes
_GONE = frozenset({"NoSuchKey", "NoSuchUpload", "NoSuchVersion"})


@dataclass(frozen=True, slots=True)
class BucketAddress:
    """Where objects lie; `prefix` is empty or ends with a slash, `seconds` is how long a request may take."""

    bucket: str
    prefix: str
    endpoint: str | None
    region: str
    seconds: float

    @property
    def server(self) -> "BucketAddress":
        """The same for every prefix of the bucket, so that stores beside each other share connections."""
        return replace(self, prefix="")


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version or delete marker; `age` in seconds, by the store's clock."""

    key: str
    id: str
    age: float


def address_of(url: str, endpoint: str | None, region: str, seconds: float) -> BucketAddress:
    """Read `s3://bucket/prefix`.

    Raises:
        StoreError: what is wrong with it.
    """
    parts = urlsplit(url)
    if (
        parts.scheme != "s3"
        or not parts.hostname
        or parts.netloc != parts.hostname
        or parts.query
        or parts.fragment
    ):
        raise StoreError(
            "PREFIX_BLOBS_URL must be s3://bucket or s3://bucket/prefix, with nothing else in it"
        )
    if endpoint is not None and urlsplit(endpoint).scheme not in {"http", "https"}:
        raise StoreError("PREFIX_BLOBS_ENDPOINT must begin with https:// or http://")
    prefix = parts.path.strip("/")
    return BucketAddress(parts.netloc, f"{prefix}/" if prefix else "", endpoint, region, seconds)


def credentials_of(address: BucketAddress) -> Callable[[], Any]:
    """What obstore asks for credentials, again every few minutes since they may be a role's.

    Raises:
        StoreError: there are none.
    """
    credentials = access_to(address.server).credentials
    if credentials.now() is None:
        raise StoreError(
            "no credentials for PREFIX_BLOBS_URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
            "AWS_SHARED_CREDENTIALS_FILE"
        )

    def ask() -> dict[str, Any]:
        frozen, left = credentials.now(), timedelta(seconds=credentials.left())
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + left,  # noqa: TID251 - obstore compares with wall time
        }

    return ask


def make_bucket(address: BucketAddress) -> None:
    """Make the bucket unless it is there.

    Raises:
        Unavailable: the store did not answer, or refused.
    """
    client = access_to(address.server).client()
    wanted: dict[str, Any] = {"Bucket": address.bucket}
    if address.region != "us-east-1":  # which S3 refuses to be told
        wanted["CreateBucketConfiguration"] = {"LocationConstraint": address.region}
    try:
        client.create_bucket(**wanted)
    except (BotoCoreError, ClientError) as error:
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        if code != "BucketAlreadyOwnedByYou":
            raise Unavailable(f"the bucket of PREFIX_BLOBS_URL could not be made: {code}") from error


class BucketVersions:
    """What lies in a bucket besides the newest bytes of each object."""

    def __init__(self, address: BucketAddress, breaker: Breaker) -> None:
        self._bucket, self._breaker = address.bucket, breaker
        self._access = access_to(address.server)

    def below(self, prefix: str) -> list[ObjectVersion]:
        """Versions and delete markers of every key that begins with `prefix`."""
        with self._reached():
            pages = self._access.client().get_paginator("list_object_versions")
            return [
                ObjectVersion(found["Key"], found["VersionId"], age)
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix)
                for found, age in _with_ages(page, ("Versions", "DeleteMarkers"), "LastModified")
            ]

    def remove(self, key: str, *, below: bool = False) -> None:
        """Remove all there is of one key, or of every key that begins with it.

        Uploads go first: one that is completed meanwhile is then among the versions.

        What is refused holds up nothing else, unless the store is away.

        Raises:
            Unavailable: something may be left; do it again.
        """
        misses = self._misses()
        with misses.passed():
            self.end_uploads(key, exactly=not below)
        if misses.away:
            misses.tell()
        found = [version for version in self.below(key) if below or version.key == key]
        for start in range(0, len(found), _AT_ONCE):
            with misses.passed():
                self._remove(found[start : start + _AT_ONCE])
            if misses.away:
                break
        misses.tell()

    def _misses(self) -> Misses:
        return Misses(lambda: self._breaker.shut)

    def _remove(self, found: Sequence[ObjectVersion]) -> None:
        wanted = [{"Key": version.key, "VersionId": version.id} for version in found]
        with self._reached():
            answer = self._access.client().delete_objects(
                Bucket=self._bucket, Delete={"Objects": wanted, "Quiet": True}
            )
        refused = [error for error in answer.get("Errors", []) if error.get("Code") not in _GONE]
        if refused:
            raise unavailable(str(refused[0].get("Code")))

    def end_uploads(self, prefix: str, *, older_than: float | None = None, exactly: bool = False) -> None:
        """End unfinished multipart uploads of keys that begin with `prefix`, or are it, of so many seconds or all.

        Raises:
            Unavailable: some may be left.
        """
        with self._reached():
            pages = self._access.client().get_paginator("list_multipart_uploads")
            found = [
                (upload["Key"], upload["UploadId"])
                for page in pages.paginate(Bucket=self._bucket, Prefix=prefix)
                for upload, age in _with_ages(page, ("Uploads",), "Initiated")
                if older_than is None or age > older_than
            ]
        misses = self._misses()
        for key, upload_id in found:
            if key == prefix or (not exactly and key.startswith(prefix)):
                with misses.passed():
                    self._end(key, upload_id)
            if misses.away:
                break
        misses.tell()

    def _end(self, key: str, upload_id: str) -> None:
        with self._reached():
            try:
                self._access.client().abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload_id)
            except ClientError as error:  # completed or ended meanwhile
                if error.response["Error"].get("Code") not in _GONE:
                    raise

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            with self._breaker.asking(BotoCoreError):  # whoever answers, if only with an error, is there
                yield
        except Shut:
            raise unavailable() from None
        except ClientError as error:
            raise unavailable(str(error.response["Error"].get("Code"))) from None
        except BotoCoreError as error:
            raise unavailable(type(error).__name__) from None


def _with_ages(page: Mapping[str, Any], kinds: Sequence[str], since: str) -> Iterator[tuple[Any, float]]:
    """What a page of a listing names, each with its age as of the page, in seconds.

    This machine's clock has no part in it: ahead of the store's it would make of what is on its way to its row
    something long forgotten. A store that does not say what time it is has at least the time of the newest. It says so in
    whole seconds, and what was put in this one is of some age too: an age is too high by a second or two at most.
    """
    found = [one for kind in kinds for one in page.get(kind, [])]
    told = parsedate_tz(page["ResponseMetadata"]["HTTPHeaders"].get("date"))
    now = mktime_tz(told) if told else max((one[since].timestamp() for one in found), default=0.0)
    return ((one, now + 1 - one[since].timestamp()) for one in found)


def unavailable(code: str | None = None) -> Unavailable:
    """The error for a store that is away; `code` goes to the log, since a client has no use for it."""
    if code is not None:
        log.warning("the object storage failed: %s", code)
    return Unavailable("the object storage does not answer")


class Access:
    """Credentials for a server, and botocore's client with those of now; for any thread."""

    def __init__(self, address: BucketAddress) -> None:
        self._address, self.credentials = address, BucketCredentials()
        self._session = (
            botocore.session.get_session()
        )  # keeps the description of S3, a tenth of a second to read
        self._making = threading.Lock()
        self._client: Any = None
        self._of: Any = None  # the credentials that the client has

    def client(self) -> Any:
        """A client with the credentials of now, made anew when they have changed."""
        wanted = self.credentials.now()
        with self._making:
            if self._client is None or self._of != wanted:
                self._client, self._of = self._make(wanted), wanted
            return self._client

    def _make(self, credentials: Any) -> Any:
        address = self._address
        style = "auto" if address.endpoint is None else "path"
        keys: tuple[Any, Any, Any] = credentials or (None, None, None)
        return self._session.create_client(
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region,
            aws_access_key_id=keys[0],
            aws_secret_access_key=keys[1],
            aws_session_token=keys[2],
            config=Config(
                connect_timeout=min(_CONNECT_S, address.seconds),
                read_timeout=address.seconds / _ATTEMPTS,
                retries={"total_max_attempts": _ATTEMPTS, "mode": "standard"},
                s3={"addressing_style": style},
            ),
        )


@cache
def access_to(address: BucketAddress) -> Access:
    """One for all of a process, whatever prefix of the bucket a store has."""
    return Access(address)
