"""What a JSON body will weigh when it is read, told from its bytes before anything of it is.

A list of empty lists takes twenty times its bytes, and reading it holds the event loop, and so everybody. What a
request can use is known beforehand: token ids of as many rows as it may have, and few texts, lists and objects.
"""

from typing import Final

from service.errors import ApiError

# Texts, names of fields, lists, objects: 1,024 biases and 128 prompts are the most of use.
MOST_PARTS: Final = 4096
_PART_BYTES = 256  # the heaviest, an object with one field
_VALUE_BYTES = 36  # a number and its place in a list
_WIDEST = 4  # bytes of each character of a text that holds one outside of Unicode's first 65,536
_NARROW = bytes(range(0xF0))  # all bytes of UTF-8 but the first one of such a character


class JsonWeight:
    """Counts what stands outside texts, piece by piece as the body comes.

    Args:
        most_values: numbers, and whatever else a comma stands between.
    """

    def __init__(self, most_values: int) -> None:
        self._most_values = most_values
        self._parts = self._quotes = self._values = self._bytes = 0
        self._width = 1
        self._rest = b""  # a backslash whose next byte has not come

    @staticmethod
    def most_bytes(most_values: int, body: int) -> int:
        """The heaviest that is let through of `body` bytes."""
        return MOST_PARTS * _PART_BYTES + most_values * _VALUE_BYTES + body * _WIDEST

    @property
    def expected(self) -> int:
        """Memory that the values take when they are read, at most, beside the body itself."""
        texts = self._bytes * self._width
        return self._all_parts * _PART_BYTES + self._values * _VALUE_BYTES + texts

    @property
    def _all_parts(self) -> int:
        return self._parts + (self._quotes + 1) // 2

    def add(self, piece: bytes) -> None:
        """Count one more piece.

        Raises:
            ApiError: 413, more than any request can use; 400, not UTF-8.
        """
        if b"\x00" in piece:  # in UTF-16 and UTF-32, where quotes and brackets cannot be told by their bytes
            raise ApiError(
                400, "invalid_json", "the body is no valid JSON in UTF-8; mend it and send it again"
            )
        text = (self._rest + piece).replace(b"\\\\", b"").replace(b'\\"', b"")
        self._rest = b"\\" if text.endswith(b"\\") else b""
        self._bytes += len(piece)
        self._width = max(self._width, _width(text))
        inside, quotes = self._quotes % 2, text.count(b'"')
        self._quotes += quotes
        self._look()  # before the text is cut at each of them
        outside = b"".join(text.split(b'"')[inside::2])
        self._parts += outside.count(b"[") + outside.count(b"{")
        self._values += outside.count(b",")
        self._look()

    def _look(self) -> None:
        if self._all_parts > MOST_PARTS:
            text = f"the body holds more than {MOST_PARTS} texts, lists and objects"
        elif self._values > self._most_values:
            text = f"the body holds more than {self._most_values} values"
        else:
            return
        raise ApiError(413, "too_large", f"{text}; send fewer prompts, token ids or fields at once")


def _width(text: bytes) -> int:
    """Bytes that each character may take when it is read: a text is as wide as its widest. An escape may be any."""
    if text.isascii() and b"\\u" not in text:
        return 1
    return _WIDEST if b"\\u" in text or text.translate(None, _NARROW) else 2
