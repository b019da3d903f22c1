"""Datasets: sealed, immutable training files, each of exactly one owner."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Self

from sqlalchemy import ColumnElement, Connection, Row, Select, delete, insert, select

from prefix_store.blobs import BlobWriter
from prefix_store.checkpoints import tell_gone
from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import db_now, of_all_owners, widen
from prefix_store.errors import Corrupt, Invalid, NoRoom, NotFound, StoreError, TooLarge, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.idempotency import forget, remember, replayed
from prefix_store.intents import committed, named, withdraw
from prefix_store.job_rows import Claim, cancel_jobs
from prefix_store.jsonl import LineChecker
from prefix_store.litter import clear_soon, note
from prefix_store.names import new_id
from prefix_store.owners import find_owner, lock_owners, lock_tenant, owner_of
from prefix_store.quotas import check_datasets
from prefix_store.reach import Reach
from prefix_store.retire import remove_versions
from prefix_store.rows import Change, change, one
from prefix_store.scope import Owner, Scope
from prefix_store.tables import LIVE, datasets, job_sources, jobs, owners, version_sources

PURPOSE = "fine-tune"


@dataclass(frozen=True, slots=True)
class Dataset:
    """One uploaded file; `bytes` of plaintext, `rows` of training."""

    id: str
    owner: Owner
    filename: str
    purpose: str
    bytes: int
    rows: int
    sha256: str
    created_at: float
    status: Literal["processed"] = "processed"

    @property
    def place(self) -> Place:
        """Where its file lies; for the store's own parts."""
        return Place(self.owner.tenant_id, self.owner.owner_id, self.id)


def _dataset(row: Row[Any]) -> Dataset:
    owner = Owner(row.tenant_id, row.owner_id, row.kind, row.name)
    return Dataset(row.id, owner, row.filename, row.purpose, row.bytes, row.rows, row.sha256, row.created_at)


class DatasetWriter:
    """Takes a file as it streams in, checks each line, seals as it goes; nothing stays unless `finish` returns.

    Use it in a `with` block, which aborts what was not finished.
    """

    def __init__(
        self, core: Core, scope: Scope, owner: Owner, filename: str, purpose: str, idempotency_key: str | None
    ) -> None:
        self._core, self._scope, self._owner = core, scope, owner
        self._filename, self._purpose, self._key = filename[:255], purpose, idempotency_key
        self.id = new_id("file")
        self._place = Place(owner.tenant_id, owner.owner_id, self.id)
        self._lines = LineChecker(core.settings.max_line_bytes, core.settings.max_rows)
        self._blob: BlobWriter = core.blobs.writer(self._place)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def write(self, chunk: bytes) -> None:
        """Check and seal the next bytes.

        Raises:
            Invalid: what is wrong with `file`, and the line.
            TooLarge: more bytes or rows than are taken.
        """
        cap = self._core.settings.max_upload_bytes
        if self._blob.size + len(chunk) > cap:
            raise TooLarge("file", f"larger than {cap} bytes; split the file")
        self._lines.push(chunk)
        self._blob.write(chunk)

    def finish(self) -> Dataset:
        """Make the dataset real; one transaction checks the owner and the tenant's quota.

        Raises:
            Invalid, NotFound, Quota, Conflict: nothing was stored.
        """
        try:
            self._lines.finish()
            alive = partial(lock_owners, tenant_id=self._place.tenant_id, owner_ids=[self._place.owner_id])
            size = self._blob.size
            self._place, sha256 = committed(self._core, self._blob, alive)
            self.id = self._place.object_id
        finally:
            self._blob.abort()
        try:
            failpoint("dataset.after_seal")
            with self._core.database.write(self._owner.reach) as connection:
                dataset = self._insert(connection, size, sha256)
        except StoreError as error:
            # Of Unavailable the commit may stand, so the file stays; if it does not, its note says so. NoRoom is none.
            if isinstance(error, NoRoom) or not isinstance(error, Unavailable):
                withdraw(self._core, [self._place])
            raise
        if dataset.id != self.id:
            withdraw(self._core, [self._place])
        return dataset

    def abort(self) -> None:
        """Leave nothing behind; nothing happens after `finish`."""
        self._blob.abort()

    def _insert(self, connection: Connection, size: int, sha256: str) -> Dataset:
        tenant = lock_tenant(connection, self._owner.tenant_id)
        ids = (self._owner.tenant_id, self._owner.owner_id)
        lock_owners(connection, ids[0], [ids[1]])
        asked = f"{sha256} {self._purpose} {self._filename}".encode("utf-8", "surrogatepass")
        request = hashlib.sha256(asked).hexdigest()
        if (before := replayed(connection, *ids, self._key, request)) is not None:
            return _dataset(connection.execute(_joined().where(datasets.c.id == before)).one())
        with of_all_owners(connection, self._owner.reach):
            check_datasets(connection, tenant, size, PURPOSE, self._core.settings.max_files)
        values = {"filename": self._filename, "purpose": self._purpose, "bytes": size, "sha256": sha256}
        keys = {"tenant_id": ids[0], "owner_id": ids[1], "id": self.id}
        statement = insert(datasets).values(rows=self._lines.rows, created_at=db_now(), **keys, **values)
        connection.execute(statement)
        named(connection, [self._place])
        remember(connection, *ids, self._key, request, self.id)
        self._core.audit.record(connection, ids[0], self._scope.key_id, "dataset.created", self.id)
        failpoint("dataset.after_row")
        return _dataset(connection.execute(_joined().where(datasets.c.id == self.id)).one())


def _joined() -> Select[Any]:
    same = (owners.c.tenant_id == datasets.c.tenant_id) & (owners.c.owner_id == datasets.c.owner_id)
    tables = datasets.join(owners, same)
    return select(datasets, owners.c.kind, owners.c.name).select_from(tables).where(owners.c.state == LIVE)


def _reached(scope: Scope) -> list[ColumnElement[bool]]:
    where = [datasets.c.tenant_id == scope.tenant_id]
    if scope.user is not None:
        where.append(datasets.c.owner_id == scope.user.owner_id)
    return where


def visible_dataset(connection: Connection, scope: Scope, dataset_id: str) -> Dataset:
    """Return a dataset that `scope` reaches; NotFound else."""
    row = one(connection, _joined().where(*_reached(scope), datasets.c.id == dataset_id))
    if row is None:
        raise NotFound("file", dataset_id)
    return _dataset(row)


class Datasets:
    """Upload, look at, read and delete datasets."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def writer(
        self,
        scope: Scope,
        owner: Owner,
        filename: str,
        purpose: str = PURPOSE,
        idempotency_key: str | None = None,
    ) -> DatasetWriter:
        """Begin an upload for `owner`.

        Raises:
            NotFound: `scope` may not act for that owner, or it was erased.
            Invalid: a purpose other than "fine-tune".
        """
        if purpose != PURPOSE:
            raise Invalid("purpose", f"purpose must be {PURPOSE!r}")
        with self._core.database.read(scope.reach) as connection:
            if owner_of(find_owner(connection, scope, owner.label)) != owner:
                raise NotFound("owner", owner.label)
        return DatasetWriter(self._core, scope, owner, filename, purpose, idempotency_key)

    def get(self, scope: Scope, dataset_id: str) -> Dataset:
        """Return one dataset; NotFound if absent or another's."""
        with self._core.database.read(scope.reach) as connection:
            return visible_dataset(connection, scope, dataset_id)

    def list(
        self, scope: Scope, after: str | None = None, limit: int = 10_000, purpose: str | None = None
    ) -> Sequence[Dataset]:
        """Datasets that `scope` reaches, newest first, beginning behind the id `after`; all, or of one purpose.

        Raises:
            NotFound: `after` is absent or another's.
        """
        where = [*_reached(scope), *([] if purpose is None else [datasets.c.purpose == purpose])]
        with self._core.database.read(scope.reach) as connection:
            if after is not None:
                last = visible_dataset(connection, scope, after)
                older = datasets.c.created_at < last.created_at
                same = (datasets.c.created_at == last.created_at) & (datasets.c.id > last.id)
                where.append(older | same)
            order = (datasets.c.created_at.desc(), datasets.c.id)
            rows = connection.execute(_joined().where(*where).order_by(*order).limit(limit))
            return [_dataset(row) for row in rows]

    def read(self, by: Scope | Claim, dataset_id: str) -> bytes:
        """Return the plaintext; a claim reaches the training and validation files of its job.

        Raises:
            NotFound: absent or another's.
            Corrupt: the file fails its seal.
        """
        dataset = self.get(by, dataset_id) if isinstance(by, Scope) else self._claimed(by, dataset_id)
        try:
            return self._core.blobs.read(dataset.place, dataset.sha256)
        except Corrupt:
            with self._core.database.read(dataset.owner.reach) as connection:
                visible = one(connection, _joined().where(datasets.c.id == dataset_id))
            if visible is None:  # deleted while it was read
                raise NotFound("file", dataset_id) from None
            raise

    def delete(self, scope: Scope, dataset_id: str, *, versions: bool = False, clear: bool = True) -> Change:
        """Erase a dataset's bytes, with `versions` also the versions that learned from it; return the last change.

        Queued and running jobs that need it are cancelled. NotFound if absent or another's. Without `clear` the
        bytes are left to `Erasures.clear`.
        """
        with self._core.database.write(scope.reach) as connection:
            lock_tenant(connection, scope.tenant_id)  # as an erasure does: both remove versions, and tell it
            dataset = visible_dataset(connection, scope, dataset_id)
            widen(connection)  # jobs and versions of tasks may have learned from it
            uses = [job_sources.c.tenant_id == scope.tenant_id, job_sources.c.dataset_id == dataset_id]
            if not versions:  # a start that learned from it is no need of the file
                uses.append(job_sources.c.role != "start")
            needing = jobs.c.id.in_(select(job_sources.c.job_id).where(*uses))
            which = (jobs.c.tenant_id == scope.tenant_id) & needing
            ended = cancel_jobs(connection, which, "Fine-tuning job cancelled: a file of it was deleted")
            if versions:
                learned = select(version_sources.c.version_id).where(
                    version_sources.c.tenant_id == scope.tenant_id, version_sources.c.dataset_id == dataset_id
                )
                remove_versions(connection, scope.tenant_id, connection.execute(learned).scalars().all())
            mine = (datasets.c.tenant_id == scope.tenant_id, datasets.c.id == dataset_id)
            if connection.execute(delete(datasets).where(*mine)).rowcount == 0:  # another deletion was first
                raise NotFound("file", dataset_id)
            told = [change(connection, "version_gone", scope.tenant_id, dataset.owner.owner_id, dataset_id)]
            forget(connection, scope.tenant_id, dataset_id)
            note(connection, [dataset.place])
            told += tell_gone(connection, ended)
            action = "dataset.deleted_with_versions" if versions else "dataset.deleted"
            self._core.audit.record(connection, scope.tenant_id, scope.key_id, action, dataset_id)
            failpoint("dataset.removed")
        if clear:
            clear_soon(self._core, scope.tenant_id)
        return told[-1]

    def _claimed(self, claim: Claim, dataset_id: str) -> Dataset:
        tenant_id = claim.owner.tenant_id
        uses = select(job_sources.c.source_owner_id).where(
            job_sources.c.tenant_id == tenant_id,
            job_sources.c.job_id == claim.job_id,
            job_sources.c.dataset_id == dataset_id,
            job_sources.c.role != "start",
        )
        with self._core.database.read(claim.owner.reach) as connection:
            source = connection.execute(uses).scalar()
        if source is None:
            raise NotFound("file", dataset_id)
        mine = (datasets.c.tenant_id == tenant_id, datasets.c.owner_id == source, datasets.c.id == dataset_id)
        with self._core.database.read(Reach(tenant_id, source)) as connection:
            row = one(connection, _joined().where(*mine))
        if row is None:
            raise NotFound("file", dataset_id)
        return _dataset(row)
