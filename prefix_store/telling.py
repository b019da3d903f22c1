"""What a worker tells of its job while it runs: events, and the hyperparameters that it goes by."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, select, update

from prefix_store.core import Core
from prefix_store.errors import LeaseLost
from prefix_store.job_rows import Claim, add_event, held
from prefix_store.rows import one
from prefix_store.tables import jobs


class Telling:
    """The verbs that end nothing; takes no scope: a claim reaches its own job only."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def event(
        self,
        claim: Claim,
        level: str,
        type: str,  # noqa: A002 - the field's name
        message: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Append an event (`level` info, warn, error; `type` message, metrics).

        Raises:
            LeaseLost: the job is no longer this claim's.
        """
        with self._core.database.write(claim.owner.reach) as connection:
            add_event(connection, self._require(connection, claim), level, type, message, data)

    def resolved(self, claim: Claim, hyperparameters: Mapping[str, Any]) -> None:
        """Keep what the run goes by beside what was asked for, which stays as it is; a later attempt's takes its place.

        Raises:
            LeaseLost: the job is no longer this claim's.
        """
        with self._core.database.write(claim.owner.reach) as connection:
            spec = {**self._require(connection, claim).spec, "resolved": dict(hyperparameters)}
            connection.execute(update(jobs).where(*held(claim)).values(spec=spec))

    def _require(self, connection: Connection, claim: Claim) -> Row[Any]:
        row = one(connection, select(jobs).where(*held(claim)).with_for_update())
        if row is None:
            raise LeaseLost("the job was cancelled, erased or claimed again")
        return row
