"""Files whose row is gone and that must go too: noted in the transaction that removes the row.

So a process killed between the commit and the unlink leaves a note, not a file that nobody names: the next
`clear` of any process finishes the work. A note is removed only once the removal is on the disk and Redis has confirmed
that it holds no copy, or the copies' time is over: what one process still owes there another one finds here.
"""

import logging
from collections.abc import Iterable

from sqlalchemy import Connection, delete, insert, select

from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.errors import Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.reach import Reach
from prefix_store.tables import litter

log = logging.getLogger(__name__)

_MANY = 500  # notes that one statement removes


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


def clear(core: Core, tenant_id: str) -> int:
    """Remove every noted file of a tenant, then its note; return how many. May be repeated at any time.

    Raises:
        Unavailable: files or database do not answer; what is left stays noted, as does what may lie in Redis.
    """
    reach = Reach(tenant_id)
    with core.database.read(reach) as connection:
        noted = select(litter).where(litter.c.tenant_id == tenant_id)
        places = [Place(*row) for row in connection.execute(noted)]
    if not places:
        return 0
    failpoint("litter.before_unlink")
    gone = [place for place in places if core.blobs.delete(place)]
    core.blobs.sync(places)
    failpoint("litter.after_unlink")
    if not gone:  # Redis is away: nobody is to wait for the database's one writer, again and again
        return 0
    with core.database.write(reach) as connection:
        for at in range(0, len(gone), _MANY):
            ids = [place.object_id for place in gone[at : at + _MANY]]
            mine = (litter.c.tenant_id == tenant_id, litter.c.object_id.in_(ids))
            connection.execute(delete(litter).where(*mine))
    return len(gone)
