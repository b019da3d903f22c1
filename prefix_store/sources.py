"""What a job learns from: its files, and what the version that it starts from learned from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from prefix_store.datasets import PURPOSE, visible_dataset
from prefix_store.errors import Conflict, Invalid, NotFound
from prefix_store.rows import one
from prefix_store.scope import Owner, Scope
from prefix_store.tables import job_sources, version_sources, versions


@dataclass(frozen=True, slots=True)
class Source:
    """A file, whose it is, and what the job needs it for: training, validation or start."""

    dataset_id: str
    owner_id: str
    role: str


def sources_of(connection: Connection, scope: Scope, owner: Owner, spec: Mapping[str, Any]) -> list[Source]:
    """Return what the job will have learned from: its files, and what its start learned from."""
    if not spec["training_files"]:
        raise Invalid("training_file", "give at least one training file")
    found: dict[str, Source] = {}
    for dataset_id in spec["training_files"]:
        found[dataset_id] = _file(connection, scope, owner, dataset_id, "training_file")
    if spec["validation_file"] is not None:
        file = _file(connection, scope, owner, spec["validation_file"], "validation_file")
        found.setdefault(file.dataset_id, file)
    if spec["start_version_id"] is not None:
        for source in _start(connection, owner, spec["start_version_id"], spec["base_fingerprint"]):
            found.setdefault(source.dataset_id, source)
    return list(found.values())


def _file(connection: Connection, scope: Scope, owner: Owner, dataset_id: str, param: str) -> Source:
    dataset = visible_dataset(connection, scope, dataset_id)
    if dataset.purpose != PURPOSE:
        raise Invalid(param, f"{dataset_id} is what a job left; give a file uploaded for {PURPOSE!r}")
    if dataset.owner.owner_id != owner.owner_id:
        if owner.kind == "user":
            raise Invalid(
                param, f"{dataset_id} is another owner's; a user's prefix learns from its own files only"
            )
        if dataset.owner.kind == "task":
            raise Invalid(param, f"{dataset_id} is another task's; upload it for this one")
    return Source(dataset_id, dataset.owner.owner_id, param.removesuffix("_file"))


def _start(connection: Connection, owner: Owner, version_id: str, base_fingerprint: str) -> list[Source]:
    mine = (
        versions.c.tenant_id == owner.tenant_id,
        versions.c.owner_id == owner.owner_id,
        versions.c.version_id == version_id,
    )
    row = one(connection, select(versions).where(*mine))
    if row is None:
        raise NotFound("model", version_id)
    if row.base_fingerprint != base_fingerprint:
        raise Conflict("base_mismatch", "the version to start from was trained for another base", "model")
    learned = select(version_sources).where(
        version_sources.c.tenant_id == owner.tenant_id, version_sources.c.version_id == version_id
    )
    return [Source(row.dataset_id, row.source_owner_id, "start") for row in connection.execute(learned)]


def insert_sources(connection: Connection, row: Row[Any], sources: Sequence[Source]) -> None:
    """Write down what a job learns from, within the caller's transaction."""
    ids = {"tenant_id": row.tenant_id, "owner_id": row.owner_id, "job_id": row.id}
    rows = [
        {**ids, "dataset_id": source.dataset_id, "source_owner_id": source.owner_id, "role": source.role}
        for source in sources
    ]
    connection.execute(insert(job_sources), rows)
