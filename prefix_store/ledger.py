"""The ledger of deletions: append-only, ids alone, each entry bound to the one before by an HMAC with the pepper.

It lies beside the secrets, not in the data, so that it outlives every backup: a restore applies it before anything can
be served. An entry is durable before the transaction that deletes commits; one whose commit then failed stands for a
deletion that somebody asked for.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from prefix_store.errors import ForeignSecrets, NoRoom, StoreError, Unavailable
from prefix_store.failpoints import failpoint
from prefix_store.local_files import sync_folder

log = logging.getLogger(__name__)

DELETIONS: Final = frozenset(
    {
        "user.erased",
        "task.erased",
        "tenant.erased",
        "prefix.deleted",
        "version.deleted",
        "dataset.deleted",
        "dataset.deleted_with_versions",
        "job.cancelled",
        "key.revoked",
    }
)
BACKUP: Final = "backup.made"
OWN: Final = "deletions.jsonl"
_PATIENCE_S = 3.0
_LOOK_S = 0.005
_TAIL = 8192  # more than two entries have: ids are bounded


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """What (object) of whom (tenant) was deleted how (action); `number` counts from 1 in each file."""

    number: int
    at: float
    action: str
    tenant_id: str
    object_id: str
    mac: str


class Ledger:
    """Append, read. Safe between processes and threads of one folder.

    Args:
        folder: holds the file that this installation appends to, and those that a restore brought along.
        pepper: what entries are sealed with.
        beside: whose owner the folder gets when root writes, a backup perhaps, so that others can go on to; the
            data's. None: whoever writes keeps it.
    """

    def __init__(self, folder: Path, pepper: bytes, beside: Path | None = None) -> None:
        self.folder, self._beside = folder, beside
        self._key = hashlib.sha256(b"prefixserve ledger" + pepper).digest()

    def append(self, action: str, tenant_id: str, object_id: str, at: float) -> LedgerEntry:
        """Return once the entry is durable.

        Raises:
            Unavailable: the folder cannot be written, a full disk perhaps; nothing may be deleted without an entry.
            ForeignSecrets: the last entry was sealed with another pepper, or changed; one more behind it would spoil
                the chain for those who have the right one.
        """
        try:
            with self._alone() as file:
                last = self._last(file)
                number, before = (last.number, last.mac) if last is not None else (0, "")
                mac = self._mac(before, number + 1, at, action, tenant_id, object_id)
                entry = LedgerEntry(number + 1, at, action, tenant_id, object_id, mac)
                failpoint("ledger.before_line")
                file.write(_line(entry))
                file.flush()
                failpoint("ledger.before_sync")
                os.fsync(file.fileno())
                failpoint("ledger.after_sync")
                return entry
        except OSError as error:
            log.warning("the ledger of deletions cannot be written: %s", error.strerror)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                raise NoRoom from error
            raise Unavailable("the ledger of deletions cannot be written") from error

    def entries(self) -> list[LedgerEntry]:
        """Every entry of every file of the folder, each file's in its order; empty if there is no folder.

        Raises:
            StoreError: an entry was changed, removed or put in; or the pepper is another.
        """
        return [entry for path in sorted(self.folder.glob("*.jsonl")) for entry in self._file(path)]

    def _file(self, path: Path) -> Iterator[LedgerEntry]:
        last = ""
        lines = path.read_bytes().split(b"\n")[:-1]  # behind the last break: cut short, so never committed
        for number, line in enumerate(lines, 1):
            entry = _entry(line)
            if entry is None or entry.number != number or not self._holds(last, entry):
                raise StoreError(f"entry {number} of the ledger {path.name} was changed or removed")
            last = entry.mac
            yield entry

    def _last(self, file: BinaryIO) -> LedgerEntry | None:
        """The entry that the file ends with, which ours is bound to."""
        end = file.tell()
        if end == 0:
            return None
        file.seek(max(0, end - _TAIL))
        before, entry = ([None, None, *map(_entry, file.read().splitlines())])[-2:]
        if entry is None:
            log.warning("the last entry of the ledger of deletions was changed")
            raise Unavailable("the ledger of deletions was changed; run `prefixserve ledger`")
        if not self._holds(before.mac if before is not None else "", entry):
            log.warning("the ledger of deletions ends with an entry of another pepper, or a changed one")
            raise ForeignSecrets(
                f"the ledger of deletions in {self.folder} ends with an entry of another pepper, or one that was"
                " changed: put the pepper of its installation into secrets/, or name another folder in"
                " PREFIX_LEDGER_DIR; `prefixserve ledger` with the right secrets says whether it is whole"
            )
        return entry

    def _holds(self, last: str, entry: LedgerEntry) -> bool:
        told = (entry.number, entry.at, entry.action, entry.tenant_id, entry.object_id)
        return hmac.compare_digest(self._mac(last, *told).encode(), entry.mac.encode())

    def _mac(self, last: str, number: int, at: float, action: str, tenant_id: str, object_id: str) -> str:
        text = "\x1f".join([last, str(number), repr(at), action, tenant_id, object_id])
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()

    @contextmanager
    def _alone(self) -> Iterator[BinaryIO]:
        """The file, locked, its end behind the last whole entry."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = self.folder / OWN
        new = not path.exists()
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            self._hand_over(file)
            _lock(file)
            _cut_torn_end(file)
            yield file
        if new:
            sync_folder(self.folder)

    def _hand_over(self, file: BinaryIO) -> None:
        if self._beside is None or os.geteuid() != 0:
            return
        owner = self._beside.stat()
        for target in (self.folder, file.fileno()):
            os.chown(target, owner.st_uid, owner.st_gid)


def _lock(file: BinaryIO) -> None:
    """Take the lock within a bounded time: who waits holds a transaction, and a process that was stopped may hold it."""
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up:
                raise
            time.sleep(_LOOK_S)
        else:
            return


def _cut_torn_end(file: BinaryIO) -> None:
    """A process killed or a disk full in the middle of an entry leaves half of one, which nobody has committed."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - _TAIL)
    file.seek(start)
    whole = start + file.read().rfind(b"\n") + 1
    if whole != size:
        file.truncate(whole)
    file.seek(whole)


def _line(entry: LedgerEntry) -> bytes:
    ids = {"tenant": entry.tenant_id, "object": entry.object_id, "mac": entry.mac}
    return json.dumps({"n": entry.number, "at": entry.at, "action": entry.action, **ids}).encode() + b"\n"


def _entry(line: bytes) -> LedgerEntry | None:
    try:
        told = json.loads(line)
        return LedgerEntry(
            int(told["n"]),
            float(told["at"]),
            *(str(told[name]) for name in ("action", "tenant", "object", "mac")),
        )
    except (ValueError, KeyError, TypeError):
        return None
