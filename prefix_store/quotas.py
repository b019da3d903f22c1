"""How much of each kind one tenant may have: counted in the transaction that adds to it, which holds the tenant's row."""

from typing import Any

from sqlalchemy import Connection, Row, func, select

from prefix_store.errors import Quota
from prefix_store.tables import LIVE, api_keys, datasets, owners


def check_datasets(connection: Connection, tenant: Row[Any], size: int, purpose: str, most: int) -> None:
    """Whether a file of `size` bytes may come to those of `purpose`; Quota if not."""
    mine = (datasets.c.tenant_id == tenant.id, datasets.c.purpose == purpose)
    counted = select(func.count(), func.coalesce(func.sum(datasets.c.bytes), 0)).where(*mine)
    files, used = connection.execute(counted).one()
    if used + size > tenant.max_dataset_bytes:
        text = f"datasets would take {used + size} of {tenant.max_dataset_bytes} bytes; delete some first"
        raise Quota(text, "file")
    if files >= most:
        raise Quota(f"{files} files are kept, {most} may be; delete some first", "file")


def check_owners(connection: Connection, tenant_id: str, most: int) -> None:
    """Whether one user or task more may be made; Quota if not."""
    mine = (owners.c.tenant_id == tenant_id, owners.c.state == LIVE)
    count = connection.execute(select(func.count()).where(*mine)).scalar_one()
    if count >= most:
        raise Quota(f"{count} users and tasks are there, {most} may be; delete some first")


def check_keys(connection: Connection, tenant_id: str, most: int) -> None:
    """Whether one key more may be made; Quota if not."""
    mine = (api_keys.c.tenant_id == tenant_id, api_keys.c.revoked_at.is_(None))
    count = connection.execute(select(func.count()).where(*mine)).scalar_one()
    if count >= most:
        raise Quota(f"{count} keys are good, {most} may be; revoke some first")
