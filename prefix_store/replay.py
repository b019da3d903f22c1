"""The ledger of deletions applied to what a backup brought back: afterwards nothing that was deleted is there.

What the backup does not know, or what is gone already, is passed over, so that a ledger may be applied whole and again.
"""

from collections.abc import Callable, Iterable
from typing import Final

from sqlalchemy import select

from prefix_store.checkpoints import tell_gone
from prefix_store.core import Core
from prefix_store.datasets import Datasets
from prefix_store.erasure import Erasures
from prefix_store.errors import Conflict, NotFound
from prefix_store.job_rows import cancel_jobs
from prefix_store.jobs import Jobs
from prefix_store.keys import Keys
from prefix_store.ledger import LedgerEntry
from prefix_store.litter import clear_soon
from prefix_store.names import prefix_name
from prefix_store.reach import Reach
from prefix_store.registry import Registry
from prefix_store.retire import remove_versions
from prefix_store.rows import one
from prefix_store.scope import GRANTS, Admin, Scope
from prefix_store.tables import (
    LIVE,
    job_sources,
    jobs,
    owners,
    prefixes,
    version_sources,
    versions,
)

_LEARNED: Final = "Fine-tuning job cancelled: a file that it learned from was deleted"
BY: Final = "restore"  # whose deletions these are, in the audit log


class Replay:
    """Apply; for a restore alone, which acts for the operator and so makes its own scopes."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._erasures = Erasures(core)
        self._acts: dict[str, Callable[[Scope, str], object]] = {
            "user.erased": self._erase_owner,
            "task.erased": self._erase_owner,
            "tenant.erased": self._erase_tenant,
            "prefix.deleted": self._delete_prefix,
            "version.deleted": self._delete_version,
            "dataset.deleted": Datasets(core).delete,
            "dataset.deleted_with_versions": self._delete_with_versions,
            "job.cancelled": self._cancel,
            "key.revoked": Keys(core).revoke,
        }

    def apply(self, entries: Iterable[LedgerEntry]) -> int:
        """Delete again what the entries name; return how many found something.

        Raises:
            Unavailable: files or database do not answer; to be applied again.
        """
        found = 0
        for entry in entries:
            act = self._acts.get(entry.action)
            if act is None:
                continue
            try:
                act(Scope(entry.tenant_id, None, BY, GRANTS), entry.object_id)
            except NotFound:
                continue
            found += 1
        return found

    def _erase_owner(self, scope: Scope, owner_id: str) -> None:
        self._erasures.purge(self._erasures.begin_owner(scope, owner_id).id)

    def _erase_tenant(self, scope: Scope, tenant_id: str) -> None:
        self._erasures.purge(self._erasures.begin_tenant(Admin(scope.key_id), tenant_id).id)

    def _delete_with_versions(self, scope: Scope, dataset_id: str) -> None:
        """The file may be gone by an earlier entry, whose own deletion was never committed; the versions are not."""
        try:
            Datasets(self._core).delete(scope, dataset_id, versions=True)
        except NotFound:
            if not self._delete_learned(scope, dataset_id):
                raise

    def _delete_learned(self, scope: Scope, dataset_id: str) -> int:
        """Remove what learned from a file, and jobs that would go on from there; return how many versions."""
        from_it = (job_sources.c.tenant_id == scope.tenant_id, job_sources.c.dataset_id == dataset_id)
        learned = (version_sources.c.tenant_id == scope.tenant_id, version_sources.c.dataset_id == dataset_id)
        with self._core.database.write(Reach(scope.tenant_id)) as connection:
            needing = jobs.c.id.in_(select(job_sources.c.job_id).where(*from_it))
            ended = cancel_jobs(connection, (jobs.c.tenant_id == scope.tenant_id) & needing, _LEARNED)
            found = connection.execute(select(version_sources.c.version_id).where(*learned)).scalars().all()
            remove_versions(connection, scope.tenant_id, found)
            tell_gone(connection, ended)
            if found:
                action = "dataset.deleted_with_versions"
                self._core.audit.record(connection, scope.tenant_id, BY, action, dataset_id)
        clear_soon(self._core, scope.tenant_id)
        return len(found)

    def _delete_prefix(self, scope: Scope, prefix_id: str) -> None:
        same = (owners.c.tenant_id == prefixes.c.tenant_id) & (owners.c.owner_id == prefixes.c.owner_id)
        mine = (prefixes.c.tenant_id == scope.tenant_id, prefixes.c.prefix_id == prefix_id)
        named = select(owners.c.kind, owners.c.name.label("owner"), prefixes.c.name).where(
            same, *mine, owners.c.state == LIVE, prefixes.c.deleted_at.is_(None)
        )
        with self._core.database.read(scope.reach) as connection:
            row = one(connection, named)
        if row is None:
            raise NotFound("prefix", prefix_id)
        Registry(self._core).delete_prefix(scope, prefix_name(row.kind, row.owner, row.name))

    def _delete_version(self, scope: Scope, version_id: str) -> None:
        """It may be live here, though it was not any more when it was deleted."""
        mine = (versions.c.tenant_id == scope.tenant_id, versions.c.version_id == version_id)
        with self._core.database.write(Reach(scope.tenant_id)) as connection:
            if one(connection, select(versions.c.version_id).where(*mine)) is None:
                raise NotFound("version", version_id)
            remove_versions(connection, scope.tenant_id, [version_id])
            self._core.audit.record(connection, scope.tenant_id, BY, "version.deleted", version_id)
        clear_soon(self._core, scope.tenant_id)

    def _cancel(self, scope: Scope, job_id: str) -> None:
        try:
            Jobs(self._core).cancel(scope, job_id)
        except Conflict:
            raise NotFound("job", job_id) from None  # it had ended when the backup was made
