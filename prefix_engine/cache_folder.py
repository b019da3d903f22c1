"""Where this machine keeps what it made for itself: compiled kernels, and weights unpacked from a smaller format."""

import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LEFT_S = 3600.0  # what is being made for so long, nobody makes any more


def cache_folder() -> Path:
    """`prefixserve` in `$XDG_CACHE_HOME`, else in `~/.cache`; made if it is not there.

    Raises:
        OSError: it cannot be made, or others may write into it.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prefixserve"
    except RuntimeError as error:  # this user has no home
        raise OSError(f"{error}; set XDG_CACHE_HOME") from error
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    folder = folder.resolve()
    status, above = folder.stat(), folder.parent.stat().st_mode
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        # Whoever may write there could have us run his code, or serve his weights.
        raise PermissionError(f"{folder} must belong to this user and be writable for nobody else")
    if above & stat.S_IWOTH and not above & stat.S_ISVTX:
        raise PermissionError(
            f"{folder.parent} must not be writable for everybody: {folder.name} could be exchanged"
        )
    return folder


@contextmanager
def making(path: Path) -> Iterator[Path]:
    """A file beside `path` to be filled: whole and on the disk it takes the name, else nothing is left of it.

    Several processes may make the same file at once; the last one's stays.
    """
    handle, name = tempfile.mkstemp(prefix="making-", dir=path.parent)
    os.close(handle)
    made = Path(name)
    for left in path.parent.glob("making-*"):
        with suppress(OSError):
            if made.stat().st_mtime - left.stat().st_mtime > _LEFT_S:  # by a process that was killed
                left.unlink()
    try:
        yield made
        _sync(made)
        made.replace(path)
        with suppress(OSError):  # some file systems know no such thing
            _sync(path.parent)
    finally:
        made.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
