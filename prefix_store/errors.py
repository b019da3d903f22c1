"""What the store refuses, as one small tree; the service maps it to HTTP.

Messages name fields, lines and ids that the caller gave; they never hold prompt or dataset text.
"""


class StoreError(Exception):
    """Base of everything the store refuses."""


class NotFound(StoreError):
    """No such thing for this scope; foreign and absent are the same."""

    def __init__(self, what: str, id: str, hint: str = "") -> None:  # noqa: A002 - the field's name
        super().__init__(f"no {what} named {id!r}{hint}")
        self.what = what
        self.id = id


class NoLiveVersion(NotFound):
    """The prefix exists, but none of its versions is live: a candidate waits."""


class NoCheckpoint(NotFound):
    """The job is there, but has no such checkpoint: none yet, another by now, or it has ended without one."""


class Conflict(StoreError):
    """The state of things forbids it; `code` is stable, `param` names the field."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


class Invalid(StoreError):
    """Bad input; `param` names the field, `line` the 1-based line of an upload."""

    def __init__(self, param: str, message: str, line: int | None = None) -> None:
        self.message = message if line is None else f"line {line}: {message}"
        super().__init__(self.message)
        self.param = param
        self.line = line


class TooLarge(Invalid):
    """More bytes or rows than the store takes."""


class Quota(StoreError):
    """A limit of the tenant is used up; waiting alone does not help."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class LeaseLost(StoreError):
    """The job is no longer this worker's: cancelled, erased, or claimed by another."""


class Corrupt(StoreError):
    """Stored bytes fail their seal or checksum."""


class Tampered(StoreError):
    """The audit log was changed after it was written; `seq` is the first bad entry."""

    def __init__(self, seq: int) -> None:
        super().__init__(f"audit entry {seq} was changed or removed")
        self.seq = seq


class ForeignSecrets(StoreError):
    """The `secrets/` here are lacking or are another installation's; the message names the folder and the mend."""


class FeedGap(StoreError):
    """Changes after the asked position are forgotten already, or never were; the process must start anew."""


class Unavailable(StoreError):
    """The database or the object storage does not answer, or not in time; nothing was changed, unless the
    connection was lost at the very commit. Try again.
    """


class Unsent(Unavailable):
    """The object storage was not even asked, so nothing can come of it later."""


class Unanswered(Unavailable):
    """The object storage is there, but did not answer this one file, which may come at any time: write it anew, elsewhere."""


class NoRoom(Unavailable):
    """The disk, or the database's, is full; nothing was stored."""

    def __init__(self) -> None:
        super().__init__("the server's disk is full and nothing was stored")


class NotMigrated(StoreError):
    """The database has a schema that this code cannot run on; the message says what to run."""


class UnsafeRole(StoreError):
    """A role of the database that row-level security would not bind, though the settings count on it."""
