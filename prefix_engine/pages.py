"""Which pages of key/value memory are free. Plain Python: counts pages, never touches their content."""

from collections.abc import Iterable


class PageAllocator:
    """Hands out the pages of one range; a page belongs to one holder until it comes back."""

    def __init__(self, pages: range) -> None:
        self._free = list(reversed(pages))
        self._used: set[int] = set()
        self.total = len(pages)

    @property
    def used(self) -> int:
        """Pages that somebody holds."""
        return len(self._used)

    @property
    def free(self) -> int:
        """Pages that nobody holds."""
        return len(self._free)

    def next(self, count: int) -> tuple[int, ...]:
        """The pages, at most `count`, that will be taken first; from another thread a guess."""
        return tuple(self._free[-count:])

    def take(self, count: int) -> tuple[int, ...] | None:
        """Take `count` pages, or none of them if so many are not free."""
        if count > len(self._free):
            return None
        pages = tuple(self._free.pop() for _ in range(count))
        self._used.update(pages)
        return pages

    def give_back(self, pages: Iterable[int]) -> None:
        """Return pages.

        Raises:
            ValueError: a page that nobody holds, so one of two holders would lose it.
        """
        for page in pages:
            if page not in self._used:
                raise ValueError(f"page {page} is not held")
            self._used.remove(page)
            self._free.append(page)


def pages_for(positions: int, page: int) -> int:
    """Pages of `page` positions each that hold `positions`."""
    return -(-positions // page)
