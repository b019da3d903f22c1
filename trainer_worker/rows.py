"""Rows of a job's files, and their token ids. Knows which line a row stood on, for messages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefix_engine.packed import Text
from prefix_engine.template import Template
from prefix_engine.tokenizer import Tokenizer
from prefix_store.jsonl import read_rows
from trainer_worker.pieces import Pieces, cut
from trainer_worker.refusal import Refused

_ROW = 128
_PIECE = 2000 * _ROW  # at most 2,000 rows, or as many long ones as take about as long: a fifth of a second


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dataset."""

    prompt: str
    completion: str
    file: str
    line: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """Token ids of a row; those from `loss_from` on are the completion and the end token."""

    tokens: tuple[int, ...]
    loss_from: int

    @property
    def carrying(self) -> int:
        """Number of tokens that carry loss."""
        return len(self.tokens) - self.loss_from

    def behind(self, prefix: int | None, position_offset: int) -> Text:
        """This row as a text behind a prefix."""
        return Text(self.tokens, self.loss_from, prefix, position_offset)


def rows_of(files: Iterable[tuple[str, bytes]]) -> Pieces[list[Row]]:
    """Rows of (id, JSONL bytes) in the order given; the store checked them at upload. Pauses between files, and in them."""
    found: list[Row] = []
    for number, (file, data) in enumerate(files):
        if number:
            yield
        weight = 0
        for line, prompt, completion in read_rows(data):
            if weight + _ROW > _PIECE:  # `cut` would have parsed all of the next piece by now
                yield
                weight = 0
            found.append(Row(prompt, completion, file, line))
            weight += _weight(found[-1])
    return found


def encode(rows: Iterable[Row], template: Template, tokenizer: Tokenizer) -> Pieces[list[Encoded]]:
    """Token ids of each row, in order; pauses between pieces."""
    found: list[Encoded] = []
    for place, piece in enumerate(cut(rows, _weight, _PIECE)):
        if place:
            yield
        for row in piece:
            prompt = template.prompt_ids(tokenizer, row.prompt)
            completion = template.completion_ids(tokenizer, row.completion)
            found.append(Encoded((*prompt, *completion), len(prompt)))
    return found


def _weight(row: Row) -> int:
    """What it takes to read a row, in characters: a short one takes time, too."""
    return _ROW + len(row.prompt) + len(row.completion)


def check_lengths(
    rows: Sequence[Row], encoded: Sequence[Encoded], position_offset: int, positions: int, param: str
) -> None:
    """Refuse rows that would need more positions than the base has.

    Raises:
        Refused: names the first such line and how many there are.
    """
    room = positions - position_offset
    long = [
        (row, len(code.tokens)) for row, code in zip(rows, encoded, strict=True) if len(code.tokens) > room
    ]
    if not long:
        return
    row, length = long[0]
    more = f" ({len(long)} rows are too long)" if len(long) > 1 else ""
    taken = f" beside the prefix's {position_offset} positions" if position_offset else ""
    raise Refused(
        "row_too_long",
        f"line {row.line} of {row.file} is {length} tokens long, the model has room for {room}{taken}{more}; "
        f"shorten or split it",
        param,
    )
