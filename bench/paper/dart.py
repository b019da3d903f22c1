"""Which lines of DART's carried part belong to one table, so that no table is trained on and scored.

The file stands in the order of its tables and seldom names them. A line goes with one of the three before it where
the two share a title or the name of a column, and with all between. Tables so found are guesses, so they are dealt out
in blocks of neighbours: what is guessed wrong can only leak where two blocks meet.
"""

import random
from collections.abc import Iterable, Sequence
from typing import Any

Line = dict[str, Any]
BACK = 3  # lines
FEWEST = 15  # lines of a block
SEED, SCORED, HELD_OUT = 0, 1 / 3, 0.1


def sides(lines: Sequence[Line]) -> tuple[list[Line], list[Line], list[Line]]:
    """(training, held out, scored): whole blocks by a fixed seed, a third scored, a tenth of the others held out."""
    dealt = blocks(lines)
    random.Random(SEED).shuffle(dealt)
    scored = _take(dealt, SCORED * len(lines))
    held_out = _take(dealt, HELD_OUT * (len(lines) - len(scored)))
    return _flat(dealt), held_out, scored


def blocks(lines: Sequence[Line]) -> list[list[Line]]:
    """Neighbouring tables together, until they have `FEWEST` lines."""
    found: list[list[Line]] = [[]]
    for table in tables(lines):
        if len(found[-1]) >= FEWEST:
            found.append([])
        found[-1] += table
    return found


def tables(lines: Sequence[Line]) -> list[list[Line]]:
    """Lines of one table together, in their order."""
    marks = [_marks(line["prompt"]) for line in lines]
    inside = [False] * len(lines)  # whether a line goes with the one before it
    for here in range(len(lines)):
        for there in range(max(0, here - BACK), here):
            if marks[here] & marks[there]:
                inside[there + 1 : here + 1] = [True] * (here - there)
                break
    found: list[list[Line]] = []
    for line, goes in zip(lines, inside, strict=True):
        if goes:
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _marks(prompt: str) -> set[str]:
    """Names of the columns of an input `subject : COLUMN : value | ...`, and its table's title."""
    found = set()
    for triple in prompt.split(" | "):
        _, column, value = triple.split(" : ", 2)
        found.add(f"title {value}" if column == "[TITLE]" else column)
    return found


def _take(dealt: list[list[Line]], count: float) -> list[Line]:
    """The first blocks until there are as many lines; they are no longer among those dealt."""
    taken: list[Line] = []
    while len(taken) < count:
        taken += dealt.pop(0)
    return taken


def _flat(dealt: Iterable[list[Line]]) -> list[Line]:
    return [line for block in dealt for line in block]
