"""Files that are there whole or not at all, also when two processes write the same one."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Where to write; at the block's end the file takes its place, and the place of the one before."""
    making = path.with_name(f"{path.name}.{os.getpid()}")
    yield making
    making.replace(path)
