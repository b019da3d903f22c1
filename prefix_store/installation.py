"""Whose secrets a database belongs to: one row with the master key's id and a proof of the pepper, neither of them secret.

The first process that opens a database of no data writes the row, and it is never changed. One that has data but no row
yet, as from before the row was, takes the secrets with which its data began: not those of its last entries, which a
process with others may have written. Knows no rows of tenants beyond the ids of their files.
"""

import hashlib
import hmac
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, inspect, select
from sqlalchemy.exc import IntegrityError, ProgrammingError

from prefix_store.audit import Audit
from prefix_store.blobs import Blobs
from prefix_store.crypto import MasterKey, Place, key_id_of
from prefix_store.db import Database, SystemDatabase
from prefix_store.errors import ForeignSecrets, NotMigrated, Unavailable
from prefix_store.migrate import is_being_restored, told_why
from prefix_store.reach import NOWHERE, OPERATOR, Reach
from prefix_store.secrets_folder import Keys, lacking
from prefix_store.settings import StoreSettings
from prefix_store.tables import counters, datasets, installation, tenants, versions

_ONLY: Final = 1
_FILES = 20  # that are looked at, where the oldest are missing or damaged
_MEND = (
    "copy `secrets/` of the database's installation there, from where it is kept or from another of its machines"
    " (docs/runbooks/lost-worker.md)"
)


class Installation:
    """Tells for one process whether secrets may be made here, and whether those that are here are the database's."""

    def __init__(self, settings: StoreSettings, database: Database, owner: SystemDatabase) -> None:
        self._folder, self._data_dir = settings.data_dir / "secrets", settings.data_dir
        self._database, self._owner = database, owner

    def allow_new_secrets(self) -> None:
        """Return if all secrets are here, or if the database has nothing yet that others belong to.

        Raises:
            ForeignSecrets: it has.
            Unavailable: it does not answer, so nobody can tell.
        """
        if lacking(self._data_dir) is None or not self._asked(_is_used):
            return
        path = lacking(self._data_dir)  # again: another process may have made them, then filled the database
        if path is not None:
            raise ForeignSecrets(
                f"{path} is not there, but the database belongs to an installation that has secrets: {_MEND}"
            )

    def settle(self, secrets: Keys, blobs: Blobs) -> None:
        """Make sure that `secrets` are the database's; where it has none yet, they are from now on.

        Does nothing before the database has a table for it, or while a backup is being restored into it.

        Raises:
            ForeignSecrets: they are another installation's; or nothing that this role may read tells.
            NotMigrated: the role may not read the schema.
            Unavailable: the database does not answer, or the object storage where a file of it must be looked at.
        """
        with _readable(), self._database.read(OPERATOR) as connection:
            if not inspect(connection).has_table(installation.name):
                return
            found = _row(connection)
            if found is None and is_being_restored(connection):
                return
            used = found is None and _is_used(connection)
            if used:  # perhaps by a process that was the first in this moment: what it wrote before any data is seen now
                found = _row(connection)
        if found is None:
            if used:
                self._prove(secrets, blobs)
            found = self._added(secrets)
        if not _fits(found, secrets):
            raise self._foreign()

    def _added(self, secrets: Keys) -> Row[Any] | None:
        """The row, ours unless another process was first: then its secrets hold."""
        with suppress(IntegrityError), self._database.write(NOWHERE) as connection:
            _write(connection, secrets)
        with self._database.read(NOWHERE) as connection:
            return _row(connection)

    def adopt(self, secrets: Keys, blobs: Blobs) -> None:
        """As the tables' owner, who alone can read the audit log: let a database of before the row have `secrets`.

        Only if its data began with them. Else nothing: who migrates may have none or another installation's, and the
        first process that opens the database says more.

        Raises:
            Unavailable: as `settle`.
        """
        with suppress(ProgrammingError):  # not the owner: newer code's schema was left alone
            with self._owner.read() as connection:
                began = _row(connection) is None and Audit(secrets.pepper).began(connection)
            if began and self._sealed_the_first_file(secrets, blobs) is not False:
                self.claim(secrets)

    def claim(self, secrets: Keys) -> None:
        """As the tables' owner: say that these are the database's secrets, unless the database says so already."""
        with suppress(IntegrityError), self._owner.write() as connection:
            if _row(connection) is None:
                _write(connection, secrets)

    def _foreign(self) -> ForeignSecrets:
        return ForeignSecrets(
            f"{self._folder} holds secrets of another installation than the database's: {_MEND}"
        )

    def _asked(self, question: Callable[[Connection], bool]) -> bool:
        """As the application's role; before that is made or granted anything, as the tables' owner."""
        try:
            with _readable(), self._database.read(OPERATOR) as connection:
                return question(connection)
        except (Unavailable, NotMigrated):
            if self._owner.engine is self._database.engine:
                raise
            with _readable(), self._owner.read() as connection:
                return question(connection)

    def _prove(self, secrets: Keys, blobs: Blobs) -> None:
        """Both keys are made in one go and copied as one folder, so one that fits is enough; none may contradict."""
        proofs = (self._began_the_log(secrets), self._sealed_the_first_file(secrets, blobs))
        if False in proofs:
            raise self._foreign()
        if True not in proofs:
            raise ForeignSecrets(
                f"nothing that the database's role may read tells whether {self._folder} is of its installation; run"
                " `prefixserve migrate` once with these secrets and PREFIX_OWNER_DATABASE_URL"
            )

    def _began_the_log(self, secrets: Keys) -> bool | None:
        try:
            with self._owner.read() as connection:
                began = Audit(secrets.pepper).began(connection)
                return began is not False  # where there is no entry, none can be spoilt
        except ProgrammingError:  # only the tables' owner may read the log
            return None

    def _sealed_the_first_file(self, secrets: Keys, blobs: Blobs) -> bool | None:
        mine = MasterKey(secrets.master_key).key_id
        for place in islice(self._files(), _FILES):
            key_id = key_id_of(blobs.files.read(place) or b"")
            if key_id is not None:
                return key_id == mine
        return None

    def _files(self) -> Iterator[Place]:
        """Oldest tenant first, of each its oldest files."""
        with self._database.read(OPERATOR) as connection:
            ids = connection.execute(select(tenants.c.id).order_by(tenants.c.created_at)).scalars().all()
        for tenant_id in ids:
            for name in (datasets.c.id, versions.c.version_id):
                of = name.table.c
                oldest = select(of.tenant_id, of.owner_id, name).order_by(of.created_at).limit(_FILES)
                with self._database.read(Reach(tenant_id)) as connection:
                    rows = connection.execute(oldest.where(of.tenant_id == tenant_id)).all()
                yield from (Place(*row) for row in rows)


def _row(connection: Connection) -> Row[Any] | None:
    return connection.execute(select(installation)).first()


def _write(connection: Connection, secrets: Keys) -> None:
    connection.execute(insert(installation).values(number=_ONLY, **_told(secrets)))


def _told(secrets: Keys) -> dict[str, str]:
    """What stands in every envelope, and an HMAC with what is derived from the pepper for this alone."""
    key = hashlib.sha256(b"prefixserve installation" + secrets.pepper).digest()
    proof = hmac.new(key, b"this database's pepper", hashlib.sha256).hexdigest()
    return {"key_id": MasterKey(secrets.master_key).key_id.hex(), "pepper_proof": proof}


def _fits(row: Row[Any] | None, secrets: Keys) -> bool:
    told = _told(secrets)
    return row is not None and all(hmac.compare_digest(getattr(row, name), told[name]) for name in told)


def _is_used(connection: Connection) -> bool:
    """Whether anything in the database belongs to somebody's secrets: all of it does once a tenant was made."""
    there = inspect(connection)
    if there.has_table(installation.name) and _row(connection) is not None:
        return True
    if not there.has_table(tenants.name):
        return False
    written = select(counters.c.value).where(counters.c.name == "audit")
    return bool(
        connection.execute(select(tenants.c.id).limit(1)).first() or connection.execute(written).scalar()
    )


@contextmanager
def _readable() -> Iterator[None]:
    try:
        with told_why():
            yield
    except ProgrammingError as error:
        raise NotMigrated("the database's role may not read its schema; run `prefixserve migrate`") from error
