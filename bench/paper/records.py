"""Results of the comparison, a line each (`bench.lines`), and beside them the texts that each model wrote.

Texts are packed and the same bytes for the same texts, so that they can be kept with the results and be scored again.
Plain Python: whoever only reads results loads no torch.
"""

import fcntl
import gzip
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.lines import Lines
from bench.paper.metrics import VERSIONS
from bench.process import BUILD
from bench.whole import whole

PLACE = BUILD / "paper"
Record = dict[str, Any]


class Records:
    """The results of a folder.

    Args:
        place: the folder; made if it is not there.
    """

    def __init__(self, place: Path = PLACE) -> None:
        self.place = place
        self._lines = Lines(place / "results.jsonl")
        (place / "texts").mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Record]:
        """Every result, in the order of the runs."""
        return self._lines.all()

    def keys(self) -> set[str]:
        """Keys of the models that are finished."""
        return self._lines.keys()

    def decodings(self, key: str) -> set[str] | None:
        """By which a finished model has written; None if there is none."""
        found = [record for record in self.all() if record["key"] == key]
        return set(found[0]["decodings"]) if found else None

    def add(self, record: Record, texts: dict[str, Sequence[str]]) -> None:
        """Keep a model's result, its texts first: what is in the results is whole."""
        with whole(self.texts_path(record["key"])) as making:
            packed = json.dumps(texts, ensure_ascii=False, indent=1).encode()
            making.write_bytes(gzip.compress(packed, mtime=0))
        self._lines.append(record)

    def replace(self, record: Record) -> None:
        """Keep a newer result of a key."""
        self._lines.append(record)

    def texts(self, key: str) -> dict[str, list[str]]:
        """Texts of a model by decoding, in the order of the scored inputs.

        Raises:
            FileNotFoundError: they are gone.
        """
        found: dict[str, list[str]] = json.loads(gzip.decompress(self.texts_path(key).read_bytes()))
        return found

    def texts_path(self, key: str) -> Path:
        """Where a model's texts lie."""
        return self.place / "texts" / f"{key}.json.gz"

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Whether this process is the one that trains a model; the claim ends with the block, or with the process."""
        path = self.place / "claims" / key
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True


def scores(record: Record, decoding: str, group: str) -> dict[str, float]:
    """Scores of a model's texts, without those by an earlier version of their rule."""
    found: dict[str, float] = record["scores"].get(decoding, {}).get(group, {})
    return {name: value for name, value in found.items() if not _earlier(record, name)}


def outdated(record: Record, decoding: str, group: str) -> list[str]:
    """Names of the scores that are left out."""
    return [name for name in record["scores"].get(decoding, {}).get(group, {}) if _earlier(record, name)]


def _earlier(record: Record, name: str) -> bool:
    version: int = record.get("versions", {}).get(name, 1)
    return version != VERSIONS.get(name, 1)
