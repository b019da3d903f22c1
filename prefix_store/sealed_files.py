"""What `blobs.py` asks of whoever keeps sealed files: local files or object storage; the same tests run on both.

Files are immutable, and their ids never come twice. Keepers see sealed bytes alone and know no key.
"""

import re
from collections.abc import Iterable
from typing import Protocol

from prefix_store.crypto import Place

_SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,80}")


class Draft(Protocol):
    """One file being written."""

    def write(self, sealed: bytes) -> None:
        """Append."""

    def commit(self) -> None:
        """Make the file durable and visible, or leave nothing and raise."""

    def abort(self) -> None:
        """Leave nothing behind; nothing happens after `commit`, but for one that raised Unanswered."""

    def sealed(self) -> bytes:
        """All that was written, until `commit` has ended or `abort`; behind Unanswered until `abort`."""


class SealedFiles(Protocol):
    """Keeps sealed files by place; what cannot be reached raises `Unavailable`, within a bounded time.

    Attributes:
        late_seconds: so long after it was announced a file may still come, though its writer was told that it does
            not answer, or is dead.
    """

    late_seconds: float

    def away(self) -> bool:
        """Whether nothing answered when it was last asked; one file that cannot be removed is no sign of that."""

    def draft(self, place: Place) -> Draft:
        """Begin a file."""

    def read(self, place: Place) -> bytes | None:
        """A file's bytes; None if there is none."""

    def delete(self, place: Place) -> None:
        """Remove a file with all that is kept of it; nothing if it is gone already."""

    def sync(self, places: Iterable[Place]) -> None:
        """Return once the removals of these files will outlast a crash."""

    def delete_owner(self, tenant_id: str, owner_id: str) -> None:
        """Remove every file of an owner, and what is half written."""

    def places(self) -> list[tuple[Place, float]]:
        """Every file and its age in seconds."""

    def present(self) -> set[Place]:
        """Every file that can be read."""

    def sweep_drafts(self, older_than: float) -> None:
        """Remove what killed processes left half written, `older_than` seconds old."""


def path_of(place: Place) -> str:
    """`<tenant>/<owner>/<object>`; ValueError for an id that is no file name."""
    parts = (place.tenant_id, place.owner_id, place.object_id)
    if not all(_SAFE.fullmatch(part) for part in parts):
        raise ValueError("an id that is no file name")
    return "/".join(parts)


def place_of(path: str) -> Place | None:
    """The place that a path names; None if it is not one of ours."""
    parts = path.split("/")
    if len(parts) != 3 or not all(_SAFE.fullmatch(part) for part in parts):
        return None
    return Place(*parts)
