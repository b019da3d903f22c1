"""Results: a JSON line for each trained model, so that a run that was cut off goes on where it was.

The texts that a model wrote lie beside, a file each, so that they can be read and scored again by more metrics.
Plain Python: whoever only reads results loads no torch.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
        self._path = place / "results.jsonl"
        (place / "texts").mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Record]:
        """Every result, in the order of the runs; of a key's several the last. A line cut off is passed over."""
        if not self._path.exists():
            return []
        found: dict[str, Record] = {}
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[record["key"]] = record
        return list(found.values())

    def keys(self) -> set[str]:
        """Keys of the models that are finished."""
        return {record["key"] for record in self.all()}

    def add(self, record: Record, texts: dict[str, Sequence[str]]) -> None:
        """Keep a model's result, its texts first: what is in the results is whole."""
        with whole(self.texts_path(record["key"])) as making:
            making.write_text(json.dumps(texts, ensure_ascii=False, indent=1), encoding="utf-8")
        self._append(record)

    def replace(self, record: Record) -> None:
        """Keep a newer result of a key."""
        self._append(record)

    def texts(self, key: str) -> dict[str, list[str]]:
        """Texts of a model by decoding, in the order of the scored inputs."""
        found: dict[str, list[str]] = json.loads(self.texts_path(key).read_text(encoding="utf-8"))
        return found

    def texts_path(self, key: str) -> Path:
        """Where a model's texts lie."""
        return self.place / "texts" / f"{key}.json"

    def _append(self, record: Record) -> None:
        line = json.dumps(record, ensure_ascii=False)
        with self._path.open("a+b") as file:
            if file.tell() and not _ends_line(file):
                file.write(b"\n")  # an earlier run was cut off within a line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
