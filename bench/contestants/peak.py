"""Memory of this process at its highest, over a stretch of time."""

import ctypes
import gc
from pathlib import Path


def reset() -> int:
    """Begin a stretch; bytes resident now, without what the allocator keeps of earlier ones."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _read("VmRSS")


def highest() -> int:
    """Bytes resident at most since the stretch began."""
    return _read("VmHWM")


def _read(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024
