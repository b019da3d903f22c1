"""Long work in pieces: a generator that pauses wherever others may go first, and returns what came of it.

A training process serves several jobs; while one looks at its held-out rows or writes texts, the others are moved
on, and whoever is to leave leaves, between two pieces.
"""

from collections.abc import Generator
from typing import TypeVar

Result = TypeVar("Result")
Pieces = Generator[None, None, Result]


def at_once(work: Pieces[Result]) -> Result:
    """Do all of it, for who has nobody to let by."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]
