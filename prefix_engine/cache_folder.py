"""Where this machine keeps what it made for itself: compiled kernels, and weights unpacked from a smaller format."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`prefixserve` in `$XDG_CACHE_HOME`, else in `~/.cache`; made if it is not there.

    Raises:
        OSError: it cannot be made, or others may write into it.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefixserve"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        # Whoever may write there could have us run his code, or serve his weights.
        raise PermissionError(f"{folder} must belong to this user and be writable for nobody else")
    return folder
