"""Whether rows and sealed files belong together. Changes nothing, and may run beside everything else.

A row without its file, or with one that does not open, is a defect. A file without its row is litter, which the
janitor sweeps; one younger than the grace may be on its way to its row.
"""

from dataclasses import dataclass, field

from prefix_store.core import Core
from prefix_store.crypto import Place
from prefix_store.db import SystemDatabase
from prefix_store.errors import Corrupt
from prefix_store.named_files import NamedFile, living_owners, named_files, noted_files, whole


@dataclass(frozen=True, slots=True)
class Finding:
    """One file, by ids; `kind` is of the row that names it, empty if none does."""

    place: Place
    kind: str = ""


@dataclass(slots=True)
class Findings:
    """What a look found.

    Attributes:
        rows: files that rows name.
        files: files that there are.
        missing: named, and not there.
        damaged: named, and does not open or is not what its row's checksum says; only a deep look finds them.
        litter: there, and named by no row: the janitor sweeps them.
        young: as litter, but so young that a row may still come.
        deep: whether every file was read.
    """

    rows: int = 0
    files: int = 0
    missing: list[Finding] = field(default_factory=list)
    damaged: list[Finding] = field(default_factory=list)
    litter: list[Finding] = field(default_factory=list)
    young: int = 0
    deep: bool = False

    @property
    def sound(self) -> bool:
        """Whether every row has its file."""
        return not self.missing and not self.damaged


class Fsck:
    """Look."""

    def __init__(self, core: Core, owner: SystemDatabase) -> None:
        self._core, self._owner = core, owner

    def look(self, *, deep: bool = False, grace_seconds: float = 3600.0) -> Findings:
        """Compare rows and files; `deep` reads every file too.

        Raises:
            StoreError: the role may not read the whole store.
            Unavailable: the object storage or the database does not answer.
        """
        found = dict(self._core.blobs.places())  # before the rows: what is named later is not among them
        present = self._core.blobs.files.present()
        with whole(self._owner) as connection:
            named, noted, living = (
                named_files(connection),
                noted_files(connection),
                living_owners(connection),
            )
        result = Findings(rows=len(named), files=len(found), deep=deep)
        for place, age in sorted(found.items(), key=lambda item: _ids(item[0])):
            if place in named:
                continue
            erased = (place.tenant_id, place.owner_id) not in living
            if age > grace_seconds or erased or place in noted:
                result.litter.append(Finding(place))
            else:
                result.young += 1
        suspects = named if deep else {place: named[place] for place in named.keys() - present}
        missing, damaged = self._read(suspects)
        if missing or damaged:
            with whole(self._owner) as connection:  # what was deleted since is neither
                still = named_files(connection)
            result.missing = [finding for finding in missing if finding.place in still]
            result.damaged = [finding for finding in damaged if finding.place in still]
        return result

    def _read(self, suspects: dict[Place, NamedFile]) -> tuple[list[Finding], list[Finding]]:
        missing, damaged = [], []
        for place in sorted(suspects, key=_ids):
            row = suspects[place]
            sealed = self._core.blobs.files.read(place)
            if sealed is None:
                missing.append(Finding(place, row.kind))
                continue
            try:
                self._core.blobs.opened(sealed, place, row.sha256)
            except Corrupt:
                damaged.append(Finding(place, row.kind))
        return missing, damaged


def _ids(place: Place) -> tuple[str, str, str]:
    return place.tenant_id, place.owner_id, place.object_id
