"""Memory of this process, or of its accelerator, at its highest over a stretch of time."""

import ctypes
import gc
from pathlib import Path

import torch


def reset(device: torch.device) -> int:
    """Begin a stretch; bytes resident now, without what the allocator keeps of earlier ones."""
    gc.collect()
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.reset_peak_memory_stats(device)
        return int(module.memory_allocated(device))
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _read("VmRSS")


def highest(device: torch.device) -> int:
    """Bytes resident at most since the stretch began."""
    if device.type != "cpu":
        return int(torch.get_device_module(device).max_memory_allocated(device))
    return _read("VmHWM")


def _read(name: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024
