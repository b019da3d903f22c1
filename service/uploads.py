"""A multipart upload on its way into the blob writer: parsed as it streams in, never a plaintext file.

The sealed file names its owner, so `user` or `task` must be known before it begins; a form that sends
them after the file is held in memory up to `_HELD` bytes.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol, cast

from anyio import CapacityLimiter, to_thread
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from prefix_store.datasets import Dataset, DatasetWriter
from prefix_store.errors import NotFound
from prefix_store.scope import Owner
from service.errors import ApiError
from service.tickets import Ticket

_HELD = 1 << 20
_FIELD_BYTES = 1024
_AT_ONCE = 256 << 10
FIELDS = frozenset({"purpose", "user", "task"})


@dataclass(frozen=True, slots=True)
class Opened:
    """A file that is being taken, and the ticket that its owner's erasure revokes."""

    writer: DatasetWriter
    ticket: Ticket
    owner: Owner


class Target(Protocol):
    """Whose the file is, as the form says."""

    def owner(self, fields: dict[str, str], *, last: bool) -> Owner | None:
        """The owner; None if the form has not said it yet (never if `last`)."""

    def open(self, owner: Owner, filename: str) -> Opened:
        """Begin the file."""

    def close(self, opened: Opened) -> None:
        """It was taken, or given up."""


class Form:
    """One multipart form: small fields, and one file that flows through."""

    def __init__(self, content_type: str) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            text = "send multipart/form-data with the parts purpose and file"
            raise ApiError(400, "invalid_value", text, "file")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.done = False
        self._file: list[bytes] = []
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._headers: dict[bytes, bytes] = {}
        self._name = ""
        self._value = bytearray()
        callbacks: dict[str, Callable[..., None]] = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._headers_done,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)  # type: ignore[arg-type]
        except FormParserError:
            raise ApiError(400, "invalid_value", "the form's boundary is not valid", "file") from None

    def feed(self, data: bytes) -> bytes:
        """Parse some bytes; returns those of the file among them.

        Raises:
            ApiError: no multipart, an unknown or too long field, a second file.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise ApiError(400, "invalid_value", "the body is no valid multipart form", "file") from None
        taken, self._file = b"".join(self._file), []
        return taken

    def _begin(self) -> None:
        self._headers, self._value = {}, bytearray()
        self._header = (bytearray(), bytearray())

    def _end_header(self) -> None:
        name, value = self._header
        self._headers[bytes(name).lower()] = bytes(value)
        self._header = (bytearray(), bytearray())

    def _headers_done(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode("utf-8", "replace")
        if self._name == "file":
            if self.filename is not None:
                raise ApiError(400, "invalid_value", "one file at a time; send the others apart", "file")
            name = options.get(b"filename", b"").decode("utf-8", "replace").replace("\x00", "")
            self.filename = name.replace("\\", "/").rsplit("/", 1)[-1] or "upload.jsonl"
        elif self._name not in FIELDS:
            text = f"unknown parameter {self._name[:100]!r}; known are file, {', '.join(sorted(FIELDS))}"
            raise ApiError(400, "unknown_parameter", text, self._name[:100])

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._name == "file":
            self._file.append(data[start:end])
            return
        self._value.extend(data[start:end])
        if len(self._value) > _FIELD_BYTES:
            raise ApiError(400, "invalid_value", f"{self._name} is too long", self._name)

    def _end(self) -> None:
        if self._name == "file":
            return
        if self._name in self.fields:
            raise ApiError(400, "invalid_value", f"{self._name} is given twice", self._name)
        try:
            self.fields[self._name] = self._value.decode("utf-8")
        except UnicodeDecodeError:
            raise ApiError(400, "invalid_value", f"{self._name} is no valid UTF-8", self._name) from None

    def _all(self) -> None:
        self.done = True


async def receive_file(
    content_type: str,
    body: AsyncIterator[bytes],
    target: Target,
    stall_seconds: float,
    storing: CapacityLimiter,
) -> Dataset:
    """Stream a form's file into the writer, on `storing` threads; nothing is stored unless all of it was good.

    Raises:
        ApiError, StoreError: what is wrong with the form, the file (and its line) or the owner; 408 for a
            client that sends nothing for `stall_seconds`.
    """
    form = Form(content_type)
    opened: Opened | None = None
    held = bytearray()
    try:
        async for chunk in _patiently(body, stall_seconds):
            held += form.feed(chunk)
            if form.filename is not None and opened is None:
                opened = await to_thread.run_sync(_open, target, form, False, limiter=storing)
                if opened is None and len(held) > _HELD:
                    text = "with a tenant's key send user or task before the file"
                    raise ApiError(400, "missing_required_parameter", text, "user")
            if opened is not None and opened.ticket.revoked:
                raise NotFound("owner", opened.owner.label)
            if opened is not None and len(held) >= _AT_ONCE:
                await to_thread.run_sync(opened.writer.write, bytes(held), limiter=storing)
                held.clear()
        if not form.done or form.filename is None:
            text = "file is missing; send it as a part of the form, and the form to its end"
            raise ApiError(400, "missing_required_parameter", text, "file")
        if opened is None:
            opened = await to_thread.run_sync(_open, target, form, True, limiter=storing)
        taken = cast("Opened", opened)
        return await to_thread.run_sync(_finish, target, taken, bytes(held), form.fields, limiter=storing)
    finally:
        if opened is not None:  # on this thread: a task that is being cancelled may not wait for another
            opened.writer.abort()
            target.close(opened)


async def _patiently(body: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    while True:
        try:
            async with asyncio.timeout(seconds):
                chunk = await anext(body, None)
        except TimeoutError:
            text = f"nothing came for {seconds:.0f} s; send the file again"
            raise ApiError(408, "timeout", text, "file") from None
        if chunk is None:
            return
        yield chunk


def _open(target: Target, form: Form, last: bool) -> Opened | None:
    owner = target.owner(dict(form.fields), last=last)
    return None if owner is None else target.open(owner, form.filename or "")


def _finish(target: Target, opened: Opened, rest: bytes, fields: dict[str, str]) -> Dataset:
    purpose = fields.get("purpose")
    if purpose is None:
        raise ApiError(400, "missing_required_parameter", "purpose is missing; send fine-tune", "purpose")
    if purpose != "fine-tune":
        raise ApiError(400, "invalid_value", "purpose must be 'fine-tune'", "purpose")
    if target.owner(fields, last=True) != opened.owner:  # a field that came after the file
        param = "task" if "task" in fields else "user"
        raise ApiError(400, "invalid_value", f"{param} names another owner; send it before the file", param)
    opened.writer.write(rest)
    return opened.writer.finish()
