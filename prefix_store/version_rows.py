"""Versions as they are read: what may be served, what is listed. Private to the store's parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from sqlalchemy import ColumnElement, Row, Select, bindparam, exists, select, true, tuple_

from prefix_store.crypto import Place
from prefix_store.names import ModelName, prefix_name
from prefix_store.scope import Owner, Scope
from prefix_store.tables import LIVE, owners, prefixes, versions

_ALIVE = (owners.c.state == LIVE, prefixes.c.deleted_at.is_(None))
_BY_NAME = (owners.c.kind.desc(), owners.c.name, prefixes.c.name)


@dataclass(frozen=True, slots=True)
class Resolved:
    """What a name meant at that moment: `m` positions, text starting at `position_offset`.

    A version, or (`number` None) the prefix of a job's checkpoint; `job_id` made it. `version_id` never comes twice.
    """

    version_id: str
    number: int | None
    name: str
    full_name: str
    owner: Owner
    m: int
    position_offset: int
    base_fingerprint: str
    template: dict[str, Any]
    sha256: str
    job_id: str | None = None

    @property
    def place(self) -> Place:
        """Where its file lies; for the store's own parts."""
        return Place(self.owner.tenant_id, self.owner.owner_id, self.version_id)


@dataclass(frozen=True, slots=True)
class Version:
    """One version as it is listed; `number` counts from 1, `metrics` is what the trainer measured, `bytes` the
    tensor file's size.
    """

    resolved: Resolved
    number: int
    live: bool
    was_live: bool
    metrics: dict[str, Any]
    bytes: int
    job_id: str
    created_at: float

    @property
    def full_name(self) -> str:
        """Name with number: `alice:voice@3`."""
        return self.resolved.full_name


@dataclass(frozen=True, slots=True)
class PrefixView:
    """A prefix and all its versions, newest first."""

    name: str
    owner: Owner
    created_at: float
    versions: tuple[Version, ...]

    @property
    def live(self) -> Version | None:
        """The version that the bare name means."""
        return next((version for version in self.versions if version.live), None)


def same_prefix() -> ColumnElement[bool]:
    """Versions of the joined prefix."""
    return (
        (versions.c.tenant_id == prefixes.c.tenant_id)
        & (versions.c.owner_id == prefixes.c.owner_id)
        & (versions.c.prefix_id == prefixes.c.prefix_id)
    )


def _of_owner() -> ColumnElement[bool]:
    return (owners.c.tenant_id == prefixes.c.tenant_id) & (owners.c.owner_id == prefixes.c.owner_id)


def _has_versions() -> ColumnElement[bool]:
    return exists().where(same_prefix()).correlate(prefixes)


def joined(which: ColumnElement[bool]) -> Select[Any]:
    """Live owners, their prefixes and, where there are any, the versions that `which` takes."""
    columns = (
        prefixes.c.tenant_id.label("p_tenant_id"),
        prefixes.c.owner_id.label("p_owner_id"),
        prefixes.c.prefix_id.label("p_prefix_id"),
        prefixes.c.live_version_id,
        prefixes.c.name.label("prefix_name"),
        prefixes.c.created_at.label("prefix_created_at"),
        owners.c.kind.label("owner_kind"),
        owners.c.name.label("owner_name"),
        _has_versions().label("has_versions"),
    )
    tables = owners.join(prefixes, _of_owner()).outerjoin(versions, same_prefix() & which)
    return select(versions, *columns).select_from(tables).where(*_ALIVE)


def listed(which: ColumnElement[bool], scope: Scope) -> Select[Any]:
    """Versions that `which` takes of the prefixes that a scope sees, by name, newest first."""
    of = (*_seen(scope), versions.c.version_id.is_not(None))
    return joined(which).where(*of).order_by(*_BY_NAME, versions.c.number.desc())


def paged(scope: Scope, after: ModelName | None, limit: int | None) -> Select[Any]:
    """Ids of the first prefixes that a scope sees and that have a version, by name, behind the name `after`."""
    of = [*_ALIVE, *_seen(scope), _has_versions()]
    if after is not None:
        kind, name = after.owner_kind, after.owner_name
        behind = tuple_(owners.c.name, prefixes.c.name) > tuple_(name, after.prefix)
        of.append((owners.c.kind < kind) | ((owners.c.kind == kind) & behind))
    alone = owners.join(prefixes, _of_owner())
    return select(prefixes.c.prefix_id).select_from(alone).where(*of).order_by(*_BY_NAME).limit(limit)


def _seen(scope: Scope) -> list[ColumnElement[bool]]:
    where = [prefixes.c.tenant_id == scope.tenant_id]
    if scope.user is not None:
        where.append((prefixes.c.owner_id == scope.user.owner_id) | (owners.c.kind == "task"))
    return where


@cache
def named(*, of_user: bool, tasks_too: bool, which: Literal["all", "live", "number", "job"]) -> Select[Any]:
    """`joined` for prefixes of one name, to be run with `name_values`; built once, since building costs a millisecond.

    Args:
        of_user: the scope is a user's and reaches what is its own.
        tasks_too: and the tenant's tasks.
        which: versions that are taken.
    """
    taken = {
        "all": true(),
        "live": versions.c.version_id == prefixes.c.live_version_id,
        "number": versions.c.number == bindparam("number"),
        "job": versions.c.job_id == bindparam("job"),
    }[which]
    where = [
        owners.c.tenant_id == bindparam("tenant"),
        owners.c.kind == bindparam("owner_kind_given"),
        owners.c.name == bindparam("owner_name_given"),
        prefixes.c.name == bindparam("prefix"),
    ]
    if of_user:
        mine = owners.c.owner_id == bindparam("user")
        where.append((mine | (owners.c.kind == "task")) if tasks_too else mine)
    return joined(taken).where(*where)


def name_values(scope: Scope, name: ModelName) -> dict[str, Any]:
    """What `named` is run with."""
    values: dict[str, Any] = {
        "tenant": scope.tenant_id,
        "owner_kind_given": name.owner_kind,
        "owner_name_given": name.owner_name,
        "prefix": name.prefix,
    }
    if name.version is not None:
        values["number"] = name.version
    if name.job is not None:
        values["job"] = name.job
    return values if scope.user is None else {**values, "user": scope.user.owner_id}


@cache
def standing() -> Select[Any]:
    """The id of a version, if it may be served; to be run with `tenant`, `owner` and `version`."""
    return (
        joined(versions.c.version_id == bindparam("version"))
        .where(
            prefixes.c.tenant_id == bindparam("tenant"),
            prefixes.c.owner_id == bindparam("owner"),
            versions.c.version_id.is_not(None),
        )
        .with_only_columns(versions.c.version_id)
    )


def resolved_of(row: Row[Any]) -> Resolved:
    """Read a version from a row of `joined`."""
    owner = Owner(row.p_tenant_id, row.p_owner_id, row.owner_kind, row.owner_name)
    name = prefix_name(owner.kind, owner.name, row.prefix_name)
    return Resolved(
        row.version_id,
        row.number,
        name,
        f"{name}@{row.number}",
        owner,
        row.m,
        row.position_offset,
        row.base_fingerprint,
        row.template,
        row.sha256,
        row.job_id,
    )


def version_of(row: Row[Any]) -> Version:
    """Read a version as listed from a row of `joined`."""
    live = row.live_version_id == row.version_id
    facts = (row.was_live, row.metrics, row.bytes, row.job_id, row.created_at)
    return Version(resolved_of(row), row.number, live, *facts)


def view_of(rows: Sequence[Row[Any]]) -> PrefixView:
    """Read a prefix with its versions from its rows of `joined`."""
    first = rows[0]
    owner = Owner(first.p_tenant_id, first.p_owner_id, first.owner_kind, first.owner_name)
    found = tuple(version_of(row) for row in rows if row.version_id is not None)
    name = prefix_name(owner.kind, owner.name, first.prefix_name)
    return PrefixView(name, owner, first.prefix_created_at, found)
