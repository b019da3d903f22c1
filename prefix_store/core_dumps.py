"""No process of ours leaves its memory on a disk when it crashes: texts and keys would lie there, known to no erasure."""

import resource


def forbid_core_dumps() -> None:
    """From now on, here and in every process that this one starts."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
