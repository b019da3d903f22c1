"""Long work in pieces: a generator that pauses wherever others may go first, and returns what came of it.

A training process serves several jobs; while one looks at its held-out rows or writes texts, the others are moved
on, and whoever is to leave leaves, between two pieces.
"""

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Pieces = Generator[None, None, Result]


def at_once(work: Pieces[Result]) -> Result:
    """Do all of it, for who has nobody to let by."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


def cut(items: Iterable[Item], size: Callable[[Item], int], most: int) -> Iterator[list[Item]]:
    """Items in their order, in pieces of at most so much together, or of one that is larger by itself."""
    piece: list[Item] = []
    total = 0
    for item in items:
        if piece and total + size(item) > most:
            yield piece
            piece, total = [], 0
        piece.append(item)
        total += size(item)
    if piece:
        yield piece
