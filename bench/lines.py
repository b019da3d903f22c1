"""Results of long studies: a JSON line for each finished run, so that a study that was cut off goes on where it was.

Plain Python: whoever only reads results loads no torch.
"""

import json
import os
from pathlib import Path
from typing import Any


class Lines:
    """A file of results, each with its `key`; the file and its folder are made with the first."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[dict[str, Any]]:
        """Every result, in the order of the runs; of a key's several the last. A line cut off is passed over."""
        if not self.path.exists():
            return []
        found: dict[str, dict[str, Any]] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                result = json.loads(line)
            except json.JSONDecodeError:
                continue
            found[result["key"]] = result
        return list(found.values())

    def keys(self) -> set[str]:
        """Keys of what is finished."""
        return {result["key"] for result in self.all()}

    def append(self, result: dict[str, Any]) -> None:
        """Keep a result; it is on disk when this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(result, ensure_ascii=False)
        with self.path.open("a+b") as file:
            if file.tell() and not _ends_line(file):
                file.write(b"\n")  # an earlier run was cut off within a line
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _ends_line(file: Any) -> bool:
    file.seek(-1, os.SEEK_END)
    return bool(file.read(1) == b"\n")
