"""No process of ours leaves its memory on a disk when it crashes: texts and keys would lie there, known to no erasure."""

import resource


def forbid_core_dumps() -> None:
    """From now on, here and in every process that this one starts.

    One byte and not none, where that is allowed: a program that `kernel.core_pattern` pipes dumps to is given them at
    a limit of 0, and of all limits is refused at this one alone (core(5)).
    """
    most = 1 if resource.getrlimit(resource.RLIMIT_CORE)[1] else 0
    resource.setrlimit(resource.RLIMIT_CORE, (most, most))
