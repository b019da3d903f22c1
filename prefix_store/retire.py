"""Taking versions away: rows removed, the live pointer moved back, everybody told through the feed."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, delete, select, update

from prefix_store.crypto import Place
from prefix_store.failpoints import failpoint
from prefix_store.litter import note
from prefix_store.rows import Change, change, one
from prefix_store.tables import prefixes, version_sources, versions


def remove_versions(connection: Connection, tenant_id: str, version_ids: Iterable[str]) -> list[Change]:
    """Remove versions within the caller's transaction and note their files; return what was told.

    Answers that checkpoints of their jobs began end with them.

    Where one was live, the pointer goes back to the newest version left that was live before, or to none:
    a version that the gate kept back does not go live by the removal of another.
    """
    wanted = sorted(set(version_ids))
    mine = (versions.c.tenant_id == tenant_id, versions.c.version_id.in_(wanted))
    learned = (version_sources.c.tenant_id == tenant_id, version_sources.c.version_id.in_(wanted))
    connection.execute(delete(version_sources).where(*learned))
    # Those that this transaction removes: another one may have been first, and has told it then.
    gone = connection.execute(delete(versions).where(*mine).returning(versions)).all()
    rows = sorted(gone, key=lambda row: (row.owner_id, row.prefix_id, row.number))
    note(connection, [Place(row.tenant_id, row.owner_id, row.version_id) for row in rows])
    failpoint("version.removed")
    backs = [back for row in rows if (back := _point_back(connection, row)) is not None]
    told = [
        change(connection, "version_gone", row.tenant_id, row.owner_id, row.version_id, row.job_id)
        for row in rows
    ]
    return told + [change(connection, "version_live", *back) for back in backs]


def _point_back(connection: Connection, gone: Row[Any]) -> tuple[str, str, str] | None:
    mine = (
        prefixes.c.tenant_id == gone.tenant_id,
        prefixes.c.owner_id == gone.owner_id,
        prefixes.c.prefix_id == gone.prefix_id,
    )
    # Held, live or not: who moves the pointer back to a version that is being removed comes before or after this.
    live = one(connection, select(prefixes.c.live_version_id).where(*mine).with_for_update(key_share=True))
    if live is None or live.live_version_id != gone.version_id:
        return None
    newest = (
        select(versions.c.version_id)
        .where(
            versions.c.tenant_id == gone.tenant_id,
            versions.c.owner_id == gone.owner_id,
            versions.c.prefix_id == gone.prefix_id,
            versions.c.was_live,
        )
        .order_by(versions.c.number.desc())
        .limit(1)
    )
    back = connection.execute(newest).scalar()
    connection.execute(update(prefixes).where(*mine).values(live_version_id=back))
    return None if back is None else (gone.tenant_id, gone.owner_id, back)
