"""The tasks: rows that are trained on, rows that choose, inputs that are scored and choose nothing.

E2E has no second file, so a tenth of its training prompts chooses, by the product's hash of the prompt. DART has one file,
of which whole tables are trained on, choose, or are scored (`dart.py`). WebNLG and SciTLDR choose by their dev files.
"""

import gzip
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from bench.paper import dart
from bench.paper.host import Host
from trainer_worker.rows import Row
from trainer_worker.split import FEWEST, split

T = TypeVar("T")
DATA = Path(__file__).resolve().parents[2] / "examples" / "data"
TASKS = ("e2e", "webnlg", "dart", "scitldr")
LOW_DATA_HELD_OUT = 0.3  # of the training size, the paper's section 6.3
HELD_OUT = 0.1  # else; what the product holds out
MOST_HELD_OUT = 400  # rows that choose, evenly taken: all 4,208 of E2E cost more time than the training does
# Extrapolation: trained on the other seven categories of WebNLG, scored on these.
UNSEEN = ("City", "SportsTeam", "WrittenWork")


@dataclass(frozen=True, slots=True)
class Scored:
    """An input with its references, and the group under which it is counted beside "all"."""

    prompt: str
    references: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """One task.

    Attributes:
        training: rows to be trained on.
        held_out: rows by which runs stop and keep their best and by which settings were chosen.
        scored: inputs of the table; nothing is chosen by them.
        most_tokens: of a text that is written.
        prompt_tokens: of an input; what is longer is cut at its end.
        instructions: hand-written prompts; the one with the lowest held-out loss is used.
        words: that prefixes, infixes and soft prompts begin with.
    """

    name: str
    training: Sequence[Row]
    held_out: Sequence[Row]
    scored: Sequence[Scored]
    most_tokens: int
    prompt_tokens: int
    instructions: tuple[str, ...]
    words: str


_FACTS = (
    "Facts, then one sentence that says them all.\n",
    "Write a sentence that says all of these facts:\n",
    "The following facts are described in the sentence below.\n",
)
_SHAPES: dict[str, dict[str, Any]] = {
    "e2e": {
        "most_tokens": 96,
        "prompt_tokens": 256,
        "words": "table-to-text-restaurant: describe the restaurant",
        "instructions": (
            "Describe the restaurant in a sentence:\n",
            "Data about a restaurant, then a sentence about it.\n",
            *_FACTS,
        ),
    },
    "webnlg": {"most_tokens": 128, "prompt_tokens": 384, "words": "table-to-text: describe", "instructions": _FACTS},
    "dart": {"most_tokens": 96, "prompt_tokens": 384, "words": "table-to-text: describe", "instructions": _FACTS},
    "scitldr": {
        "most_tokens": 64,
        "prompt_tokens": 512,
        "words": "summarize the paper in one sentence:",
        "instructions": (
            "Read the abstract and say in one sentence what the paper does.\n",
            "An abstract, then a summary of one sentence.\n",
            "TL;DR of the abstract below:\n",
        ),
    },
}  # fmt: skip


def load(name: str, *, extrapolate: bool = False) -> Task:
    """A task with all its rows.

    Args:
        name: one of `TASKS`.
        extrapolate: train and choose on the categories of WebNLG that are not in `UNSEEN`.

    Raises:
        ValueError: no such task, or no categories to extrapolate over.
    """
    if name not in TASKS:
        raise ValueError(f"--task {name!r} is unknown; choose of {', '.join(TASKS)}")
    if extrapolate and name != "webnlg":
        raise ValueError("--study extrapolation needs categories; give --task webnlg")
    training, held_out, scored = _SIDES[name]() if not extrapolate else _extrapolation()
    asked = {one.prompt for one in scored}  # 8 test inputs of WebNLG and 2 of SciTLDR are in training too
    training, held_out = ([row for row in rows if row.prompt not in asked] for rows in (training, held_out))
    known = {row.prompt for row in training}
    chosen = _evenly([row for row in held_out if row.prompt not in known], MOST_HELD_OUT)
    return Task(name, training, chosen, scored, **_SHAPES[name])


def _e2e() -> tuple[list[Row], list[Row], list[Scored]]:
    training, held_out = _split(_rows("e2e_train"))
    return training, held_out, _scored("e2e_valid")


def _webnlg() -> tuple[list[Row], list[Row], list[Scored]]:
    return _rows("paper/webnlg_train"), _rows("paper/webnlg_dev"), _scored("paper/webnlg_test_seen")


def _scitldr() -> tuple[list[Row], list[Row], list[Scored]]:
    return _rows("paper/scitldr_train"), _rows("paper/scitldr_dev"), _scored("paper/scitldr_test")


def _dart() -> tuple[list[Row], list[Row], list[Scored]]:
    """Only DART's dev part can be had: a third of its tables is scored, a tenth of the others chooses."""
    training, held_out, scored = dart.sides(_lines("paper/dart_wiki_dev"))
    rows = [_as_rows(lines, "dart_wiki_dev") for lines in (training, held_out)]
    return rows[0], rows[1], [Scored(line["prompt"], tuple(line["references"])) for line in scored]


def _extrapolation() -> tuple[list[Row], list[Row], list[Scored]]:
    def known(name: str) -> list[Row]:
        return _as_rows([line for line in _lines(name) if line["category"] not in UNSEEN], name)

    scored = [
        Scored(line["prompt"], tuple(line["references"]), "unseen" if line["category"] in UNSEEN else "seen")
        for line in _lines("paper/webnlg_test_seen")
    ]
    return known("paper/webnlg_train"), known("paper/webnlg_dev"), scored


_SIDES = {"e2e": _e2e, "webnlg": _webnlg, "dart": _dart, "scitldr": _scitldr}


def _split(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    sides = split(rows)
    return [rows[place] for place in sides.training], [rows[place] for place in sides.held_out]


def _lines(name: str) -> list[dict[str, Any]]:
    with gzip.open(DATA / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _rows(name: str) -> list[Row]:
    return _as_rows(_lines(name), name)


def _as_rows(lines: Sequence[dict[str, Any]], file: str) -> list[Row]:
    """A row for each completion or reference."""
    return [
        Row(line["prompt"], text, file, number)
        for number, line in enumerate(lines, 1)
        for text in ([line["completion"]] if "completion" in line else line["references"])
    ]


def _scored(name: str) -> list[Scored]:
    return [Scored(line["prompt"], tuple(line["references"])) for line in _lines(name)]


def sized(task: Task, rows: int | None, sample: int, limit_inputs: int | None, *, low: bool = False) -> Task:
    """A smaller task: so many training rows by the sample's seed, held-out rows in proportion, inputs evenly.

    Args:
        task: with all its rows.
        rows: training rows; all if not given.
        sample: seed of the choice.
        limit_inputs: scored inputs; all if not given.
        low: hold out 30 % of the training size as the paper does in low data, else 10 %; and draw each number of rows
            by itself, so that the larger sample does not hold the smaller.

    Raises:
        ValueError: there are not so many rows, or low data would take them all.
    """
    enough(task, rows, low=low)
    chance = random.Random(f"{sample}/{rows}" if low else sample)
    training, held_out = list(task.training), list(task.held_out)
    if rows is not None and rows < len(training):
        training = chance.sample(training, rows)
        share = LOW_DATA_HELD_OUT if low else HELD_OUT
        wanted = max(FEWEST, round(share * rows))
        held_out = chance.sample(held_out, min(wanted, len(held_out)))
    scored = task.scored if limit_inputs is None else _evenly(task.scored, limit_inputs)
    return replace(task, training=training, held_out=held_out, scored=scored)


def enough(task: Task, rows: int | None, *, low: bool) -> None:
    """Raise ValueError unless the task has so many rows; low data draws from more than it takes."""
    there = len(task.training)
    if rows is not None and (rows > there or (low and rows == there)):
        which = "low data draws from more rows than it takes" if low else "they cannot be drawn"
        raise ValueError(f"--rows {rows}: {task.name} has {there} to train on; {which}; give fewer")


def _evenly(found: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly spread."""
    count = min(most, len(found))
    return [found[place * len(found) // count] for place in range(count)]


def cut(task: Task, host: Host) -> Task:
    """The task with inputs of at most `prompt_tokens` tokens, cut at their end."""

    def short(text: str) -> str:
        ids = host.encode(text)
        if len(ids) <= task.prompt_tokens:
            return text
        return host.base.tokenizer.decode(ids[: task.prompt_tokens]).rstrip("�")

    def rows(found: Sequence[Row]) -> list[Row]:
        return [replace(row, prompt=short(row.prompt)) for row in found]

    scored = [replace(asked, prompt=short(asked.prompt)) for asked in task.scored]
    return replace(task, training=rows(task.training), held_out=rows(task.held_out), scored=scored)
