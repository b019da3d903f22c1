"""Which machine this is: the same for all processes and containers on it, another after a restart."""

import socket
from functools import cache
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")  # Linux; containers see their host's


@cache
def this_machine() -> str:
    """The kernel's id of this start of the machine; the host's name where there is none."""
    try:
        return _BOOT.read_text().strip()
    except OSError:
        return socket.gethostname()
