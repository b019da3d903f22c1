"""Prompts that running rows are about to have computed, so that a like one may wait for them. Plain Python."""

from prefix_engine.request import Request
from prefix_engine.sequence import Sequence

_Beginning = tuple[
    tuple[str, ...] | None, str | None, tuple[int, ...]
]  # caller, prefix, the prompt's first page


class Beginnings:
    """Running rows by caller, prefix and the first page of their prompts.

    Args:
        page: positions of a page.
    """

    def __init__(self, page: int) -> None:
        self._page = page
        self._rows: dict[_Beginning, dict[int, Sequence]] = {}

    def add(self, sequence: Sequence) -> None:
        """A row begins."""
        self._rows.setdefault(self._of(sequence.request), {})[sequence.number] = sequence

    def remove(self, sequence: Sequence) -> None:
        """A row, if it was one, ends."""
        beginning = self._of(sequence.request)
        rows = self._rows.get(beginning, {})
        rows.pop(sequence.number, None)
        if not rows:
            self._rows.pop(beginning, None)

    def awaited(self, request: Request, known: int, most: int) -> bool:
        """Whether a request should wait for a row: it saves half or more of its work, and loses no time.

        Args:
            request: that has no row yet.
            known: pages of its prompt that are in memory.
            most: pages of its prompt that need not be computed.
        """
        left = len(request.prompt) - known * self._page
        for row in self._rows.get(self._of(request), {}).values():
            if 0 < row.prompt_left <= left:
                saved = self._alike(request.prompt, row.request.prompt, most) - known
                if saved > 0 and 2 * saved >= most - known:
                    return True
        return False

    def _of(self, request: Request) -> _Beginning:
        return request.reuse, request.prefix_id, request.prompt[: self._page]

    def _alike(self, one: tuple[int, ...], other: tuple[int, ...], most: int) -> int:
        """Full pages in which two prompts begin alike, at most `most`."""
        most = min(most, len(other) // self._page)
        for at in range(most):
            where = slice(at * self._page, (at + 1) * self._page)
            if one[where] != other[where]:
                return at
        return most
