"""Files on their way to their row: noted before a byte of one is sent, until a row names it or it is gone.

A file without a row is nobody's, and yet what is in it may be of somebody who is erased: a worker is killed between
the two, or refused while the storage is away; a PUT that was given up lands later. So an erasure looks here, and is not
done before every file that was announced for the owner, or by a job with the owner's data, has come and gone or can
come no more (`SealedFiles.late_seconds`). It looks again at each of its turns, and so needs no listing of a storage,
which would tell nothing of a PUT under way, nor which of an owner's files is of which job.

Who names a file takes its note away in the same transaction, and may not if it is gone: what was taken for litter
is never named afterwards.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, delete, func, insert, select

from prefix_store.blobs import BlobWriter
from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import db_now
from prefix_store.errors import NoRoom, Unanswered, Unavailable, Unsent
from prefix_store.failpoints import failpoint
from prefix_store.litter import note
from prefix_store.names import new_id
from prefix_store.reach import Reach
from prefix_store.tables import intents


def announce(
    core: Core, place: Place, may: Callable[[Connection], object], job_id: str | None = None
) -> None:
    """Note a file that is about to be written; each by itself, so that its time runs from its own first byte.

    Args:
        core: of the store.
        place: of the file.
        may: called within the transaction; raises if it may not be written, and holds what could change that.
        job_id: of the job that writes it, whose data it may have learned from.
    """
    ids = {"tenant_id": place.tenant_id, "owner_id": place.owner_id, "object_id": place.object_id}
    with core.database.write(Reach(place.tenant_id, place.owner_id)) as connection:
        may(connection)
        connection.execute(insert(intents).values(job_id=job_id, noted_at=db_now(), **ids))
    failpoint("intent.noted")


def beside(place: Place) -> Place:
    """Another place for the same file: what was sent to the first may come whatever becomes of the second."""
    return replace(place, object_id=new_id(place.object_id.partition("-")[0]))


@contextmanager
def announced(
    core: Core, place: Place, may: Callable[[Connection], object], job_id: str | None = None
) -> Iterator[None]:
    """`announce`, and within the block the file is written; one that is sure not to come is not waited for."""
    announce(core, place, may, job_id)
    try:
        yield
    except (NoRoom, Unsent) as error:
        withdraw(core, [place], sent=not isinstance(error, Unsent))
        raise


def committed(core: Core, writer: BlobWriter, may: Callable[[Connection], object]) -> tuple[Place, str]:
    """`announce` an upload and make it visible; return where it lies, and the SHA-256 of its plaintext in hex.

    One that the storage did not answer is written once more in another place: who sent it has nothing to do anew.
    """
    try:
        with announced(core, writer.place, may):
            return writer.place, writer.commit()
    except Unanswered:
        again = core.blobs.moved(writer, beside(writer.place))
    try:
        with announced(core, again.place, may):
            return again.place, again.commit()
    finally:
        again.abort()


def named(connection: Connection, places: Sequence[Place]) -> None:
    """Within the transaction that names the files: they are on their way no more.

    Raises:
        Unavailable: one took so long that it counts as litter; write it anew.
    """
    if connection.execute(delete(intents).where(_of(places))).rowcount != len(places):
        raise Unavailable("a file came too late for its row; it is to be written again")


def withdraw(core: Core, places: Sequence[Place], *, sent: bool = True) -> None:
    """Remove files that were written, or not even `sent`, and that no row names nor ever will.

    What cannot be removed now stays noted.
    """
    if places and (not sent or core.blobs.discard(places)):
        with (
            suppress(Unavailable),
            core.database.write(Reach(places[0].tenant_id, places[0].owner_id)) as connection,
        ):
            connection.execute(delete(intents).where(_of(places)))


def give_up(connection: Connection, which: ColumnElement[bool], older_than: float) -> int:
    """Take for litter what was noted so many seconds ago; how many of `which` are younger."""
    old = delete(intents).where(which, intents.c.noted_at <= db_now() - older_than)
    gone = connection.execute(
        old.returning(intents.c.tenant_id, intents.c.owner_id, intents.c.object_id)
    ).all()
    note(connection, [Place(*row) for row in gone])
    return int(connection.execute(select(func.count()).select_from(intents).where(which)).scalar_one())


def _of(places: Sequence[Place]) -> ColumnElement[bool]:
    found: ColumnElement[bool] = (
        (intents.c.tenant_id == places[0].tenant_id)
        & (intents.c.owner_id == places[0].owner_id)
        & intents.c.object_id.in_([place.object_id for place in places])
    )
    return found
