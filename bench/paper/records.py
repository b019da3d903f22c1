"""Results of the comparison, a line each (`bench.lines`), and beside them the texts that each model wrote.

Plain Python: whoever only reads results loads no torch.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.lines import Lines
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

    def add(self, record: Record, texts: dict[str, Sequence[str]]) -> None:
        """Keep a model's result, its texts first: what is in the results is whole."""
        with whole(self.texts_path(record["key"])) as making:
            making.write_text(json.dumps(texts, ensure_ascii=False, indent=1), encoding="utf-8")
        self._lines.append(record)

    def replace(self, record: Record) -> None:
        """Keep a newer result of a key."""
        self._lines.append(record)

    def texts(self, key: str) -> dict[str, list[str]]:
        """Texts of a model by decoding, in the order of the scored inputs."""
        found: dict[str, list[str]] = json.loads(self.texts_path(key).read_text(encoding="utf-8"))
        return found

    def texts_path(self, key: str) -> Path:
        """Where a model's texts lie."""
        return self.place / "texts" / f"{key}.json"
