"""Jobs as the worker that holds them sees them: heartbeat, checkpoint, settle.

A job runs at least once and takes effect at most once. A claim's `attempt` is its fence: it is never given
twice, every write of a worker names it, and the completing transaction requires that the job is still
running under it and that its owner is alive. Leases are kept by the database's clock, so workers' clocks
may jump.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Row, case, select, true, update

from prefix_store.checkpoints import drop_checkpoint, load_state, replace_checkpoint, seal, tell_gone
from prefix_store.crypto import Place
from prefix_store.db import JOBS, db_now, tell
from prefix_store.errors import LeaseLost, NoRoom, NotFound
from prefix_store.failpoints import failpoint
from prefix_store.intents import announced, named, withdraw
from prefix_store.job_rows import Claim, add_event, held
from prefix_store.litter import clear_soon
from prefix_store.names import new_id
from prefix_store.owners import lock_owners
from prefix_store.publish import Decision, KeptFile, Published, TrainedPrefix, publish
from prefix_store.rows import one
from prefix_store.tables import jobs, prefixes, versions
from prefix_store.telling import Telling
from prefix_store.version_rows import Resolved, joined, resolved_of

CRASHED = "worker_crashed"
_MOST_STARTS = 64


class Leases(Telling):
    """The worker's side of a job; takes no scope: a claim reaches its own job and its owner only."""

    def heartbeat(
        self, claim: Claim, progress: dict[str, Any] | None = None
    ) -> Literal["continue", "cancel", "lost"]:
        """Prolong the lease and show progress.

        "cancel" and "lost" both mean stop at once. After "cancel" (by the user, an erasure or a deletion)
        call `cancelled` when nothing of the run is left; after "lost" the job is another worker's or gone.
        """
        values: dict[str, Any] = {"lease_until": db_now() + self._core.settings.lease_seconds}
        if progress is not None:
            values["progress"] = progress
        mine = (jobs.c.id == claim.job_id, jobs.c.attempt == claim.attempt)
        with self._core.database.write(claim.owner.reach) as connection:
            if connection.execute(update(jobs).where(*held(claim)).values(**values)).rowcount == 1:
                failpoint("lease.beaten")
                return "continue"
            status = connection.execute(select(jobs.c.status).where(*mine)).scalar()
            return "cancel" if status == "cancelled" else "lost"

    def live(self, claim: Claim) -> Resolved | None:
        """Return the version of the job's prefix that is live now, for the gate to compare with."""
        which = versions.c.version_id == prefixes.c.live_version_id
        return self._version(claim, which, prefixes.c.prefix_id == claim.prefix_id)

    def start(self, claim: Claim) -> Resolved | None:
        """Return the version that the job starts from; None if it starts from none.

        Raises:
            NotFound: it was deleted since the job was made.
        """
        version_id = claim.job.start_version_id
        if version_id is None:
            return None
        found = self._version(claim, versions.c.version_id == version_id, true())
        if found is None:
            raise NotFound("model", version_id)
        return found

    def holds_out_alike(self, claim: Claim, version_id: str) -> bool:
        """Whether a version of the job's owner, and whatever that was started from, learned from none of the held-out rows.

        A job without a validation file holds rows out by its training files alone, so the jobs behind the version must
        have had the same files, and no validation file. False where one of these jobs is not to be found, and behind
        a very long row of starts.
        """
        files = sorted(claim.job.training_files)
        version: str | None = version_id
        behind = select(jobs.c.spec).join(versions, versions.c.job_id == jobs.c.id)
        mine = (versions.c.tenant_id == claim.owner.tenant_id, versions.c.owner_id == claim.owner.owner_id)
        with self._core.database.read(claim.owner.reach) as connection:
            for _ in range(_MOST_STARTS):
                spec = (
                    connection.execute(behind.where(*mine, versions.c.version_id == version)).scalar() or {}
                )
                if spec.get("validation_file") is not None or sorted(spec.get("training_files", ())) != files:
                    return False
                version = spec.get("start_version_id")
                if version is None:
                    return True
        return False

    def save_checkpoint(
        self, claim: Claim, update_number: int, payload: bytes, best: TrainedPrefix | None = None
    ) -> None:
        """Keep the state of the run after that many updates; only the latest stays.

        Args:
            claim: of the job.
            update_number: how many.
            payload: the state.
            best: the best prefix so far, to be called while the job is open, with its `step` in `metrics`; None
                if it is the one that was kept before.

        Raises:
            LeaseLost: the job is no longer this claim's; nothing was kept.
        """
        files = [(self._place(claim, "state"), payload)]
        files += [] if best is None else [(self._place(claim, "ckpt"), best.payload)]
        state, *kept = seal(self._core, files, partial(self._put, claim))
        places = [state.place, *(file.place for file in kept)]
        failpoint("checkpoint.after_seal")
        try:
            with self._core.database.write(claim.owner.reach) as connection:
                lock_owners(connection, state.place.tenant_id, [state.place.owner_id])
                job = self._require(connection, claim)
                named(connection, places)
                replace_checkpoint(connection, job, update_number, state, kept[0] if kept else None, best)
                failpoint("checkpoint.after_row")
        except (LeaseLost, NotFound):
            withdraw(self._core, places)
            raise LeaseLost("the job was cancelled, erased or claimed again") from None
        except NoRoom:
            withdraw(self._core, places)
            raise
        clear_soon(self._core, claim.owner.tenant_id)

    def load_checkpoint(self, claim: Claim) -> bytes | None:
        """Return the latest state that an attempt saved; None if there is none that can be read."""
        return load_state(self._core, claim.owner, claim.job_id)

    def complete(
        self,
        claim: Claim,
        trained: TrainedPrefix,
        *,
        promote: bool,
        compared_with: str | None = None,
        reason: str = "",
    ) -> Published:
        """Publish a version and end the job, in one transaction.

        The version goes live only if the gate says so (`promote`) and the live version is still the one
        that the gate compared with (`compared_with`, a version id or None); else it is kept as a candidate.

        Raises:
            LeaseLost: cancelled, erased or claimed again meanwhile; nothing was published, no file is left.
            NoRoom: the disk is full; the same.
        """
        decision = Decision(promote, compared_with, reason)
        version, *others = seal(self._core, self._files(claim, trained), partial(self._put, claim))
        places = [version.place, *(other.place for other in others)]
        files = [
            KeptFile(file.filename, other.place, len(file.content), other.sha256)
            for file, other in zip(trained.files, others, strict=True)
        ]
        failpoint("publish.after_files")
        try:
            with self._core.database.write(claim.owner.reach) as connection:
                lock_owners(connection, version.place.tenant_id, [version.place.owner_id])
                job = self._require(connection, claim)
                named(connection, places)
                ids = (version.place.object_id, version.sha256)
                done = publish(self._core, connection, claim, job, trained, decision, *ids, files)
        except (LeaseLost, NotFound):
            withdraw(self._core, places)
            raise LeaseLost("the job was cancelled, erased or claimed again") from None
        except NoRoom:
            withdraw(self._core, places)
            raise
        clear_soon(self._core, claim.owner.tenant_id)
        return done

    def _files(self, claim: Claim, trained: TrainedPrefix) -> Iterator[tuple[Place, bytes]]:
        """The version and its result files, each with its place."""
        yield self._place(claim, "ver"), trained.payload
        failpoint("publish.after_seal")
        for file in trained.files:
            yield self._place(claim, "file"), file.content

    def _put(self, claim: Claim, place: Place, payload: bytes) -> str:
        """Refuse before a file is written, or note it and write it; the transaction behind it decides.

        The job's row is held for the note: an erasure that cancels it then finds that. Returns the file's checksum.
        """
        with announced(self._core, place, partial(self._require, claim=claim), claim.job_id):
            return self._core.blobs.put(place, payload)

    def fail(self, claim: Claim, code: str, message: str, param: str | None = None) -> None:
        """End the job as failed, never retried: bad data, a bad setting.

        Raises:
            LeaseLost: the job is no longer this claim's.
        """
        with self._core.database.write(claim.owner.reach) as connection:
            row = self._require(connection, claim)
            self._end_failed(connection, row, code, message, param)
            tell_gone(connection, [row])
        clear_soon(self._core, claim.owner.tenant_id)

    def cancelled(self, claim: Claim) -> None:
        """Say that nothing of a run that was cancelled is left, so that an erasure need not wait for its lease.

        Call it after "cancel" and after LeaseLost, once the child is dead and the data let go of.
        """
        with self._core.database.write(claim.owner.reach) as connection:
            self._let_go(connection, claim)

    def _let_go(self, connection: Connection, claim: Claim) -> None:
        mine = (
            jobs.c.tenant_id == claim.owner.tenant_id,
            jobs.c.id == claim.job_id,
            jobs.c.attempt == claim.attempt,
            jobs.c.status != "running",
        )
        connection.execute(update(jobs).where(*mine).values(lease_until=0.0))

    def release(self, claim: Claim, *, crashed: bool = False, delay_seconds: float = 0.0) -> None:
        """Give the job back to the queue, to be claimed again after `delay_seconds`; its checkpoint stays.

        `crashed` counts against `max_attempts` (the child died) unless others were trained in the same process,
        and then the job is next trained alone; without it the worker, not the job, is the reason (shutting
        down). If the job was cancelled meanwhile it stays so.
        """
        joint = jobs.c.company == "joint"
        more = case((joint, 0), else_=1) if crashed else 0
        company = case((joint, "alone" if crashed else "open"), else_=jobs.c.company)
        values = {
            "status": "queued",
            "lease_until": 0.0,
            "run_at": db_now() + delay_seconds,
            "company": company,
        }
        statement = update(jobs).where(*held(claim)).values(crashes=jobs.c.crashes + more, **values)
        with self._core.database.write(claim.owner.reach) as connection:
            row = connection.execute(statement.returning(jobs)).first()
            if row is None:
                self._let_go(connection, claim)
            elif row.crashes >= self._core.settings.max_attempts:
                self._give_up(connection, row)
                tell_gone(connection, [row])
            elif not delay_seconds:
                tell(connection, JOBS)
        clear_soon(self._core, claim.owner.tenant_id)

    def not_begun(self, claim: Claim) -> int:
        """Note that no training process began with the job; how often that was so, this time included.

        Counted apart from the claims: a deploy or an outage of the storage gives jobs back too, and is no such sign.

        Raises:
            LeaseLost: the job is no longer this claim's.
        """
        more = update(jobs).where(*held(claim)).values(not_begun=jobs.c.not_begun + 1)
        with self._core.database.write(claim.owner.reach) as connection:
            count = connection.execute(more.returning(jobs.c.not_begun)).scalar()
        if count is None:
            raise LeaseLost("the job was cancelled, erased or claimed again")
        return int(count)

    def _give_up(self, connection: Connection, row: Row[Any]) -> None:
        times = self._core.settings.max_attempts
        message = f"the worker crashed {times} times on this job; it is given up"
        self._end_failed(connection, row, CRASHED, message, None)

    def _end_failed(
        self, connection: Connection, row: Row[Any], code: str, message: str, param: str | None
    ) -> None:
        error = {"code": code, "message": message, "param": param}
        mine = (jobs.c.tenant_id == row.tenant_id, jobs.c.owner_id == row.owner_id, jobs.c.id == row.id)
        values = {"status": "failed", "error": error, "lease_until": 0.0, "finished_at": db_now()}
        connection.execute(update(jobs).where(*mine).values(**values))
        drop_checkpoint(connection, row)
        add_event(connection, row, "error", "message", message, {"code": code, "param": param})

    def _version(
        self, claim: Claim, which: ColumnElement[bool], more: ColumnElement[bool]
    ) -> Resolved | None:
        mine = (
            prefixes.c.tenant_id == claim.owner.tenant_id,
            prefixes.c.owner_id == claim.owner.owner_id,
            versions.c.version_id.is_not(None),
        )
        with self._core.database.read(claim.owner.reach) as connection:
            row = one(connection, joined(which).where(*mine, more))
        return None if row is None else resolved_of(row)

    def _place(self, claim: Claim, kind: str) -> Place:
        return Place(claim.owner.tenant_id, claim.owner.owner_id, new_id(kind))
