"""Frames on the pipes between a worker and its training process: a kind, JSON fields, bytes.

No frame touches a disk. Nothing is unpickled: the child's side of the pipe is trusted no further than its
JSON.
"""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

_SIZES = struct.Struct(">II")
_MOST_FIELDS = 1 << 20


@dataclass(frozen=True, slots=True)
class Frame:
    """One message about one job of the process, or about all of them (`job` is empty)."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = field(default=b"", repr=False)
    job: str = ""


def write(pipe: BinaryIO, frame: Frame) -> None:
    """Put a frame on a pipe."""
    head = json.dumps([frame.kind, dict(frame.fields), frame.job]).encode()
    pipe.write(_SIZES.pack(len(head), len(frame.payload)) + head)
    pipe.write(frame.payload)
    pipe.flush()


def read(pipe: BinaryIO) -> Frame | None:
    """Take the next frame; None when the other side is gone, be it within a frame.

    Raises:
        ValueError: these are no frames.
    """
    sizes = pipe.read(_SIZES.size)
    if len(sizes) < _SIZES.size:
        return None
    head_size, size = _SIZES.unpack(sizes)
    if head_size > _MOST_FIELDS:
        raise ValueError("not a frame")
    head, payload = pipe.read(head_size), pipe.read(size)
    if len(head) < head_size or len(payload) < size:
        return None
    kind, fields, job = json.loads(head)
    return Frame(kind, fields, payload, job)
