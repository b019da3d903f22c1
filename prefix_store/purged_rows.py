"""What an erasure takes away of the rows of some owners, and what has to stay while a worker may hold their data.

For several owners at once: a tenant may have thousands, and each statement costs a round trip to the database.
"""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Table, delete, func, select, update

from prefix_store.db import db_now
from prefix_store.intents import give_up
from prefix_store.tables import (
    api_keys,
    checkpoints,
    datasets,
    idempotency,
    intents,
    job_events,
    job_sources,
    jobs,
    prefixes,
    usage,
    version_sources,
    versions,
)
from prefix_store.usage import add_usage


def touching(tenant_id: str, owner_ids: Sequence[str]) -> ColumnElement[bool]:
    """Jobs of the owners, and jobs of others that learn from their files."""
    learn = select(job_sources.c.job_id).where(
        job_sources.c.tenant_id == tenant_id, job_sources.c.source_owner_id.in_(owner_ids)
    )
    return (jobs.c.tenant_id == tenant_id) & (jobs.c.owner_id.in_(owner_ids) | jobs.c.id.in_(learn))


def purge_rows(connection: Connection, tenant_id: str, owner_ids: Sequence[str], late: float) -> int:
    """Remove owners' rows; return how many jobs with their data a worker may still hold, else how many files may come."""

    def mine(table: Table) -> ColumnElement[bool]:
        return (table.c.tenant_id == tenant_id) & table.c.owner_id.in_(owner_ids)

    for table in (version_sources, versions, checkpoints, job_events, datasets, idempotency, api_keys, usage):
        connection.execute(delete(table).where(mine(table)))
    theirs = touching(tenant_id, owner_ids)
    held = select(func.count()).select_from(jobs).where(theirs, jobs.c.lease_until > db_now())
    # Cancelled jobs announce no more files; what they had announced is waited for once no worker can write it.
    announced = mine(intents) | (intents.c.tenant_id == tenant_id) & intents.c.job_id.in_(
        select(jobs.c.id).where(theirs)
    )
    count = int(connection.execute(held).scalar_one()) or give_up(connection, announced, late)
    if count:  # the rows say who holds what, so they stay, without content
        empty: dict[str, Any] = dict.fromkeys(("progress", "result", "error", "fine_tuned_model"))
        empty["spec"] = {}
        connection.execute(update(jobs).where(mine(jobs)).values(**empty))
        connection.execute(update(prefixes).where(mine(prefixes)).values(name=prefixes.c.prefix_id))
        return count
    learned = (job_sources.c.tenant_id == tenant_id) & job_sources.c.source_owner_id.in_(owner_ids)
    connection.execute(delete(job_sources).where(learned))
    for table in (job_sources, jobs, prefixes):
        connection.execute(delete(table).where(mine(table)))
    return 0


def fold_usage(connection: Connection, tenant_id: str, owner_id: str) -> None:
    """Keep the tenant's totals without the owner."""
    mine = (usage.c.tenant_id == tenant_id, usage.c.owner_id == owner_id)
    for row in connection.execute(select(usage).where(*mine)).all():
        add_usage(
            connection, (tenant_id, "", row.day), row.requests, row.prompt_tokens, row.completion_tokens
        )
    connection.execute(delete(usage).where(*mine))
