"""Where this machine keeps what it made for itself: compiled kernels, and weights unpacked from a smaller format."""

import grp
import os
import pwd
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
    if not is_own(folder):
        # Whoever may write there could have us run his code, or serve his weights.
        raise PermissionError(f"{folder} must belong to this user and be writable for nobody else")
    above = folder.parent.stat()
    if above.st_mode & stat.S_ISVTX:  # as in /tmp: others may not exchange what is not theirs
        return folder
    if above.st_mode & stat.S_IWOTH:
        raise PermissionError(
            f"{folder.parent} must not be writable for everybody: {folder.name} could be exchanged"
        )
    if above.st_mode & stat.S_IWGRP and not _is_alone_in(above.st_gid):
        raise PermissionError(
            f"{folder.parent} must not be writable for its group (chmod g-w): {folder.name} could be exchanged"
        )
    return folder


def is_own(path: Path) -> bool:
    """Whether this, and no link, belongs to this user and nobody else may write it.

    For a file too, whatever its folder is now: it may be left from a time when others could write there.
    """
    status = path.lstat()
    return not stat.S_ISLNK(status.st_mode) and status.st_uid == os.getuid() and not status.st_mode & 0o022


def _is_alone_in(group: int) -> bool:
    """Whether a group is one of this process's, and the system names no other member.

    Debian and its like give each user such a group and let it write whatever the user makes; containers with a user
    of their own run in root's, and find volumes in one that is theirs beside it. Who is in a group only by being in it
    from the start cannot be seen without reading all users, which takes minutes where a directory service has them.
    """
    try:
        user = pwd.getpwuid(os.getuid())
        name, own = [user.pw_name], user.pw_gid
    except KeyError:  # a user without a name, as in a container
        name, own = [], os.getegid()
    if group not in {own, os.getegid(), *os.getgroups()}:
        return False
    try:
        return grp.getgrgid(group).gr_mem in ([], name)
    except KeyError:
        return True


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
        made.chmod(
            made.stat().st_mode & ~0o022
        )  # a compiler makes its output anew, as open as the umask lets it
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
