"""Lines of a training file, checked as they stream by. Knows no files and no rows of the database."""

import json
from collections.abc import Iterator
from typing import Any, Final, NoReturn

from prefix_store.errors import Invalid, TooLarge

FIELDS: Final = ("prompt", "completion")
_BOM = b"\xef\xbb\xbf"
_SHOWN = 40


class LineChecker:
    """Checks JSONL piece by piece: strict UTF-8, one object a line, `prompt` and `completion` non-empty.

    Lines end in LF or CRLF; a byte order mark at the start and blank lines are passed over. Messages name
    the 1-based line and the field and never quote the text.
    """

    def __init__(self, max_line_bytes: int, max_rows: int) -> None:
        self._max_line, self._max_rows = max_line_bytes, max_rows
        self._pending = b""
        self._line = 0
        self.rows = 0

    def push(self, piece: bytes) -> None:
        """Check the lines that end in `piece`; Invalid or TooLarge says what is wrong."""
        *whole, self._pending = (self._pending + piece).split(b"\n")
        for line in whole:
            self._check(line)
        if len(self._pending) > self._max_line:
            self._line += 1
            self._too_long()

    def finish(self) -> None:
        """Check the last line and that there was any."""
        if self._pending:
            self._check(self._pending)
        if self.rows == 0:
            raise Invalid("file", 'the file is empty; give one {"prompt": ..., "completion": ...} a line')

    def _check(self, line: bytes) -> None:
        self._line += 1
        if len(line) > self._max_line:
            self._too_long()
        if self._line == 1:
            line = line.removeprefix(_BOM)
        if not line.strip():
            return
        self.rows += 1
        if self.rows > self._max_rows:
            raise TooLarge("file", f"more than {self._max_rows} rows; split the file", self._line)
        check_row(line, self._line)

    def _too_long(self) -> NoReturn:
        raise TooLarge("file", f"longer than {self._max_line} bytes; shorten the row", self._line)


def check_row(line: bytes, number: int) -> dict[str, str]:
    """Read one line; Invalid says what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("file", f"not valid UTF-8 at byte {error.start + 1} of the line", number) from None
    try:
        row = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except _BadRow as error:
        raise Invalid("file", str(error), number) from None
    except (ValueError, RecursionError):
        raise Invalid("file", "not valid JSON", number) from None
    if not isinstance(row, dict):
        raise Invalid("file", "not a JSON object", number)
    _check_fields(row, number)
    return row


def _check_fields(row: dict[str, Any], number: int) -> None:
    if "references" in row:
        raise Invalid(
            "file",
            "'references' is for evaluation; a training row holds one 'completion': repeat the prompt for more",
            number,
        )
    for field in FIELDS:
        if field not in row:
            raise Invalid("file", f"field '{field}' is missing", number)
        value = row[field]
        if not isinstance(value, str) or not value:
            raise Invalid("file", f"field '{field}' must be a non-empty text", number)
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise Invalid("file", f"field '{field}' holds half a surrogate pair", number)
    for name in row:
        if name not in FIELDS:
            raise Invalid(
                "file", f"field {name[:_SHOWN]!a} is not known; give 'prompt' and 'completion' only", number
            )


def read_rows(data: bytes) -> Iterator[tuple[int, str, str]]:
    """(line number, prompt, completion) of a checked file."""
    for number, line in enumerate(data.removeprefix(_BOM).split(b"\n"), 1):
        if line.strip():
            row = check_row(line, number)
            yield number, row["prompt"], row["completion"]


class _BadRow(ValueError):
    """A row that json would take, but not we."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise _BadRow("a field stands twice")
    return row


def _no_constant(_: str) -> NoReturn:
    raise _BadRow("NaN and Infinity are no JSON")
