"""Files whose row is gone and that must go too: noted in the transaction that removes the row.

So a process killed between the commit and the unlink leaves a note, not a file that nobody names: the next
`clear` of any process finishes the work. A note is removed only once the removal is on the disk and Redis has confirmed
that it holds no copy, or the copies' time is over: what one process still owes there another one finds here.
"""

import logging
import random
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import Connection, delete, insert, select

from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.errors import Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.misses import Misses
from prefix_store.reach import Reach
from prefix_store.tables import litter

log = logging.getLogger(__name__)

_MANY = 500  # notes that one statement removes
MOST_MISSES = 16  # files that cannot be removed, each of which takes seconds where the storage answers 5xx


def note(connection: Connection, places: Iterable[Place]) -> None:
    """Note files to be removed once the caller's transaction has committed."""
    rows = [{"tenant_id": p.tenant_id, "owner_id": p.owner_id, "object_id": p.object_id} for p in places]
    if rows:
        connection.execute(insert(litter), rows)


def clear_soon(core: Core, tenant_id: str) -> None:
    """`clear` after a commit, which stands whatever comes of this: files that cannot be reached go later."""
    try:
        clear(core, tenant_id)
    except (Unavailable, OSError):
        log.warning("noted files are removed later")


def clear(core: Core, tenant_id: str, first: Collection[str] = ()) -> int:
    """Remove every noted file of a tenant, then its note; return how many. May be repeated at any time.

    One that cannot be removed (a legal hold, a bad block) holds up none of the others, nor do many of them hold up whoever
    calls: behind `MOST_MISSES` the rest is left for another time. So the order is another one each time, but that the owners
    `first` come first.

    Raises:
        Unavailable: files or database do not answer; what is left stays noted, as does what may lie in Redis.
        OSError: the same of a disk.
    """
    places = _noted(core, tenant_id)
    if not places:
        return 0
    failpoint("litter.before_unlink")
    misses = Misses(core.blobs.away, MOST_MISSES)
    gone: list[Place] = []
    soon = set(first)
    for _, of in sorted(_by_owner(places).items(), key=lambda one: one[0] not in soon):
        if not misses.away:
            gone += _removed(core, of, misses)
    failpoint("litter.after_unlink")
    if gone:  # else Redis may be away: nobody is to wait for the database's one writer, again and again
        _strike(core, tenant_id, gone)
    misses.tell()
    return len(gone)


def waited_for(core: Core, tenant_id: str, owner_ids: Collection[str]) -> bool:
    """Whether a file is noted that an erasure of these owners waits for: theirs, or what may have learned from them.

    A note does not say why it was made. Of other owners it may be a version or a checkpoint that learned from
    these, but no `file-...`: that is somebody's own upload, or a run's numbers, which stay with their owner anyway.
    """
    of = set(owner_ids)
    return any(
        place.owner_id in of or not place.object_id.startswith("file-") for place in _noted(core, tenant_id)
    )


def _noted(core: Core, tenant_id: str) -> Sequence[Place]:
    """What is noted."""
    noted = select(litter).where(litter.c.tenant_id == tenant_id)
    with core.database.read(Reach(tenant_id)) as connection:
        return [Place(*row) for row in connection.execute(noted)]


def _by_owner(places: Sequence[Place]) -> dict[str, list[Place]]:
    found: dict[str, list[Place]] = {}
    for place in random.sample(places, len(places)):
        found.setdefault(place.owner_id, []).append(place)
    return found


def _removed(core: Core, places: Sequence[Place], misses: Misses) -> Sequence[Place]:
    """Of one owner's files those that are gone, which is on the disk, and of which no cache holds a copy."""
    gone = []
    for place in places:
        if misses.away:
            break
        with misses.passed():
            if core.blobs.delete(place):
                gone.append(place)
    with misses.passed():
        core.blobs.sync(places)
        return gone
    return []


def _strike(core: Core, tenant_id: str, gone: Sequence[Place]) -> None:
    with core.database.write(Reach(tenant_id)) as connection:
        for at in range(0, len(gone), _MANY):
            ids = [place.object_id for place in gone[at : at + _MANY]]
            mine = (litter.c.tenant_id == tenant_id, litter.c.object_id.in_(ids))
            connection.execute(delete(litter).where(*mine))
