"""Names that people give and how a model name is read. Knows no rows.

A user's prefix is `alice:brand-voice`; a task's prefix has the task's name and is `task:e2e`. `@3` selects
a version, `@ftjob-<id>` what a job has come to, `@ftjob-<id>-step-<n>` one checkpoint of it; the bare name means
the live version.
"""

import re
import secrets
from dataclasses import dataclass
from typing import Final, Literal

from prefix_store.errors import Invalid

NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
RULE: Final = "must match [a-z0-9][a-z0-9._-]{0,63}"
TASK: Final = "task"
_VERSION = r"(?P<version>[1-9][0-9]{0,8})"
_JOB = r"(?P<job>ftjob-[0-9A-Za-z]{1,64})(?:-step-(?P<step>[0-9]{1,9}))?"
_MODEL = re.compile(rf"(?P<owner>{NAME.pattern}):(?P<prefix>{NAME.pattern})(?:@(?:{_VERSION}|{_JOB}))?")
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"

OwnerKind = Literal["user", "task"]


@dataclass(frozen=True, slots=True)
class ModelName:
    """A parsed prefix name; at most one of `version` and `job` is set, `step` only beside `job`."""

    owner_kind: OwnerKind
    owner_name: str
    prefix: str
    version: int | None = None
    job: str | None = None
    step: int | None = None

    @property
    def bare(self) -> str:
        """The name without a version or job."""
        return prefix_name(self.owner_kind, self.owner_name, self.prefix)


def prefix_name(kind: str, owner: str, prefix: str) -> str:
    """`alice:voice` for a user's prefix; `task:e2e` for a task's, whose prefix has the task's name."""
    return f"{TASK}:{prefix}" if kind == "task" else f"{owner}:{prefix}"


def parse_model(text: str) -> ModelName | None:
    """Read a prefix's name; None if it is none (a base model's name has no colon)."""
    match = _MODEL.fullmatch(text)
    if match is None:
        return None
    owner, prefix = match["owner"], match["prefix"]
    number, step = (int(match[part]) if match[part] else None for part in ("version", "step"))
    if owner == TASK:
        return ModelName("task", prefix, prefix, number, match["job"], step)
    return ModelName("user", owner, prefix, number, match["job"], step)


def owner_label(kind: OwnerKind, name: str) -> str:
    """`alice` for a user, `task:e2e` for a task."""
    return f"{TASK}:{name}" if kind == "task" else name


def parse_owner(label: str) -> tuple[OwnerKind, str] | None:
    """Read an owner's label; None if it is none."""
    kind: OwnerKind = "task" if label.startswith(f"{TASK}:") else "user"
    name = label.removeprefix(f"{TASK}:") if kind == "task" else label
    return (kind, name) if NAME.fullmatch(name) else None


def check_name(text: str, param: str, reserved: frozenset[str] = frozenset()) -> str:
    """Return `text` if it is a name that may be given.

    Raises:
        Invalid: not a name, or reserved; `param` names the field.
    """
    if NAME.fullmatch(text) is None:
        raise Invalid(param, f"{param} {RULE}")
    if text == TASK or text in reserved:
        raise Invalid(param, f"{param} {text!r} is reserved; choose another")
    return text


def new_id(kind: str) -> str:
    """Return a fresh random id of 128 bits, `<kind>-<22 letters and digits>`."""
    return f"{kind}-{base62(secrets.token_bytes(16), 22)}"


def base62(data: bytes, length: int) -> str:
    """`data` as exactly `length` letters and digits (the low ones if it does not fit)."""
    number = int.from_bytes(data)
    letters = []
    for _ in range(length):
        number, digit = divmod(number, 62)
        letters.append(_ALPHABET[digit])
    return "".join(letters)
