"""Rows of a job's files, and their token ids. Knows which line a row stood on, for messages."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from prefix_engine.packed import Text
from prefix_engine.template import Template
from prefix_engine.tokenizer import Tokenizer
from prefix_store.jsonl import read_rows
from trainer_worker.refusal import Refused


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


def rows_of(files: Iterable[tuple[str, bytes]]) -> list[Row]:
    """Rows of (id, JSONL bytes) in the order given; the store checked them at upload."""
    return [
        Row(prompt, completion, file, line)
        for file, data in files
        for line, prompt, completion in read_rows(data)
    ]


def encode(rows: Sequence[Row], template: Template, tokenizer: Tokenizer) -> list[Encoded]:
    """Token ids of each row, in order."""
    found = []
    for row in rows:
        prompt = template.prompt_ids(tokenizer, row.prompt)
        found.append(Encoded((*prompt, *template.completion_ids(tokenizer, row.completion)), len(prompt)))
    return found


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
