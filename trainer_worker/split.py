"""Which rows are held out, by a hash of the prompt: no prompt stands on both sides, but for one that most rows have.

E2E's 42,061 rows have 4,862 prompts; a split by row would test on prompts that training saw. The choice
depends on the rows' text alone, so every run on the same files, and the live version's run before it,
holds the same rows out.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trainer_worker.refusal import Refused
from trainer_worker.rows import Row

SHARE = 0.1
FEWEST = 8
FEWEST_ROWS = 10
FEWEST_PROMPTS = 20
_MEND = "add rows, or give a validation file"


@dataclass(frozen=True, slots=True)
class Split:
    """Indexes of the rows that are trained on and of those held out, each ascending."""

    training: tuple[int, ...]
    held_out: tuple[int, ...]


def split(rows: Sequence[Row]) -> Split:
    """Hold out about a tenth of the rows, at least eight.

    Prompts are taken in the order of their SHA-256 until there are enough rows; one that would take twice
    the rows wanted is passed over. Where more than half of the other prompts would go for it, half of them do, and the
    rest are rows of those passed over, by their own hash: no row is on both sides, nor is a copy of it.
    With under 20 prompts whole rows are hashed instead.

    Raises:
        Refused: too few rows.
    """
    if len(rows) < FEWEST_ROWS:
        raise Refused(
            "too_few_rows",
            f"{len(rows)} rows are too few to hold some out (at least {FEWEST_ROWS}); {_MEND}",
            "training_file",
        )
    by_prompt = len({row.prompt for row in rows}) >= FEWEST_PROMPTS
    digests = [_digest(row.prompt if by_prompt else _whole(row)) for row in rows]
    digests, chosen = _grouped(rows, digests)
    if chosen.count < FEWEST:
        raise Refused(
            "too_few_rows", f"too few different rows to hold {FEWEST} out; {_MEND}", "training_file"
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for index, digest in enumerate(digests):
        sides[digest in chosen.groups].append(index)
    return Split(tuple(sides[0]), tuple(sides[1]))


def _grouped(rows: Sequence[Row], digests: list[bytes]) -> tuple[list[bytes], "_Chosen"]:
    """Choose groups of rows; also each row's group, which is its digest, or that of the whole row where a prompt is split."""
    wanted = max(FEWEST, round(SHARE * len(rows)))
    chosen = _Chosen(min(2 * wanted, len(rows) - 2))
    groups = sorted(Counter(digests).items())
    passed = chosen.take(groups, wanted)
    others = [group for group in groups if group[0] not in passed]
    half = len(others) // 2
    if not passed or len(chosen.groups) <= half:
        return digests, chosen
    chosen = _Chosen(chosen.most)
    chosen.take(others[:half], wanted)
    parts = {place: _digest(_whole(rows[place])) for place, digest in enumerate(digests) if digest in passed}
    chosen.take(sorted(Counter(parts.values()).items()), wanted)
    chosen.take(others[half:], FEWEST)
    return [parts.get(place, digest) for place, digest in enumerate(digests)], chosen


class _Chosen:
    """Groups of rows that are held out, by their digests; never more than `most` rows together."""

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self.groups: set[bytes] = set()

    def take(self, groups: Sequence[tuple[bytes, int]], wanted: int) -> set[bytes]:
        """Take (digest, rows) in their order until there are as many rows as wanted; those that were too large."""
        passed: set[bytes] = set()
        for digest, size in groups:
            if self.count >= wanted:
                break
            if self.count + size > self.most:
                passed.add(digest)
            else:
                self.groups.add(digest)
                self.count += size
        return passed


def unseen(rows: Sequence[Row], training: Sequence[Row]) -> list[Row]:
    """The validation rows that are not trained on, prompt and completion.

    Not by the prompt alone: training rows with the prompts of a trusted file and other completions would take out of it
    what they are to be found by.

    Raises:
        Refused: too few of them to judge by.
    """
    seen = {_whole(row) for row in training}
    found = [row for row in rows if _whole(row) not in seen]
    if len(found) < len(rows) and len(found) < FEWEST:
        raise Refused(
            "validation_seen",
            f"only {len(found)} validation rows are not trained on, at least {FEWEST} are needed; give others",
            "validation_file",
        )
    return found


def _whole(row: Row) -> str:
    return f"{row.prompt}\0{row.completion}"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
