"""Which rows are held out, by a hash of the prompt: no prompt stands on both sides.

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
    the rows wanted is passed over. With under 20 prompts whole rows are hashed instead.

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
    digests = [_digest(row.prompt if by_prompt else f"{row.prompt}\0{row.completion}") for row in rows]
    wanted = max(FEWEST, round(SHARE * len(rows)))
    most = min(2 * wanted, len(rows) - 2)
    chosen: set[bytes] = set()
    count = 0
    for digest, size in sorted(Counter(digests).items()):
        if count >= wanted:
            break
        if count + size <= most:
            chosen.add(digest)
            count += size
    if count < FEWEST:
        raise Refused(
            "too_few_rows", f"too few different rows to hold {FEWEST} out; {_MEND}", "training_file"
        )
    sides: tuple[list[int], list[int]] = ([], [])
    for index, digest in enumerate(digests):
        sides[digest in chosen].append(index)
    return Split(tuple(sides[0]), tuple(sides[1]))


def unseen(rows: Sequence[Row], training: Sequence[Row]) -> list[Row]:
    """The validation rows that are not trained on: by prompt, or by the whole row if prompts are few.

    Raises:
        Refused: too few of them to judge by.
    """
    by_prompt = len({row.prompt for row in training}) >= FEWEST_PROMPTS

    def key(row: Row) -> str:
        return row.prompt if by_prompt else f"{row.prompt}\0{row.completion}"

    seen = {key(row) for row in training}
    found = [row for row in rows if key(row) not in seen]
    if len(found) < len(rows) and len(found) < FEWEST:
        raise Refused(
            "validation_seen",
            f"only {len(found)} validation rows are not trained on, at least {FEWEST} are needed; give others",
            "validation_file",
        )
    return found


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
