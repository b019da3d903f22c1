"""What a process holds in memory, and how much of it is the base's mapped file. Linux: /proc/PID/smaps."""

from collections import Counter
from pathlib import Path


def memory(pid: int) -> dict[str, int]:
    """Bytes of a process: resident, proportional, both of the base's mapping, and what is nobody else's file."""
    seen: Counter[str] = Counter()
    base = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            base = words[1] == "r--s" and words[-1].endswith(".safetensors")
        elif words[-1] == "kB":
            kind, size = words[0][:-1], 1024 * int(words[1])
            seen[kind] += size
            seen[f"base {kind}"] += size if base else 0
    return {
        "rss": seen["Rss"],
        "pss": seen["Pss"],
        "map_rss": seen["base Rss"],
        "map_pss": seen["base Pss"],
        "own": seen["Anonymous"],
    }
