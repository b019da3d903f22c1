"""Which runs the study makes: one setting varied at a time around a middle, at 100 and at 500 examples.

| part | what varies |
|---|---|
| m | positions of the prefix, 1 to 100 |
| form | the MLP at several learning rates against the direct form |
| init | the product's words, words of the dataset's own, irrelevant words, random values |
| rate | learning rate of the direct form |
| epochs | passes over the rows |
| dropout | on the prefix's keys and values |
| batch | rows of an update, at as many passes |
| size | 50, 100, 200, 500 and all examples |
| auto | what the product takes by itself, at these sizes |

Every setting of the first eight is given, so that no result depends on what "auto" means on the day. Examples are the
lines of a user's file, of which the trainer holds a tenth out.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from trainer_worker.auto import AUTOS

# Settings are chosen on the first half and reported on the second, whose datasets no choice goes by.
HALVES = {
    "choosing": ("booking_assistant", "dickinson_poems", "e2e", "recipe_cook"),
    "reporting": ("quiz_master", "commit_messages", "maths_tutor", "aesop_fables"),
}
DATASETS = tuple(name for names in HALVES.values() for name in names)
SHORT = ("booking_assistant", "dickinson_poems", "quiz_master", "commit_messages")
SIZES = (50, 100, 200, 500, None)
UPDATES = 120  # of the middle, at every size
PARTS = ("rate", "batch", "epochs", "m", "form", "init", "dropout", "size", "auto")
FOREIGN = "elephant, divide, banana, keyboard, active"  # of the paper's irrelevant words, and like them
Start = Literal["words", "own", "foreign", "random"]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a run is told; `rows` of a batch, `updates` at most, `start` of the prefix."""

    m: int = 10
    form: Literal["direct", "mlp"] = "direct"
    start: Start = "words"
    rate: float = 1e-1
    updates: int = UPDATES
    batch: int = 4
    dropout: float = 0.0


MIDDLE = Settings()
BEFORE = replace(MIDDLE, updates=200, batch=16)  # what auto meant before there was a study
Levels = dict[str, tuple[Settings | None, ...]]


def _levels(name: str, *values: object) -> tuple[Settings, ...]:
    return tuple(replace(MIDDLE, **{name: value}) for value in values)


def _batches(*sizes: int) -> tuple[Settings, ...]:
    rows = MIDDLE.batch * MIDDLE.updates
    return tuple(replace(MIDDLE, batch=size, updates=rows // size) for size in sizes)


def _mlps(*rates: float) -> tuple[Settings, ...]:
    return tuple(replace(MIDDLE, form="mlp", rate=rate) for rate in rates)


AROUND: dict[int, Levels] = {
    100: {
        "rate": _levels("rate", 0.03, 0.3, 0.01),
        "batch": _batches(8, 16, 2),
        "epochs": _levels("updates", 2 * UPDATES, 4 * UPDATES, UPDATES // 3),
        "m": _levels("m", 1, 30, 3, 100),
        "form": _mlps(3e-3, 1e-2, 1e-3),
        "init": _levels("start", "random", "foreign", "own"),
        "dropout": _levels("dropout", 0.1, 0.3),
        "auto": (None, BEFORE),
    },
    500: {
        "rate": _levels("rate", 0.03, 0.3),
        "batch": _batches(8),
        "epochs": _levels("updates", 2 * UPDATES, 4 * UPDATES),
        "m": _levels("m", 30, 3),
        "form": _mlps(3e-3),
        "init": _levels("start", "random"),
        "dropout": _levels("dropout", 0.1),
        "auto": (None, BEFORE),
    },
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One run: so many examples of a dataset drawn by the seed, which is the training's too.

    Attributes:
        part: that asks for it; the same run of two parts is made once.
        examples: None takes all, 3,000 at most.
        settings: None lets the product choose.
    """

    part: str
    dataset: str
    examples: int | None
    seed: int
    settings: Settings | None

    def key(self, fingerprint: str) -> str:
        """Digest of all that decides the result on a base."""
        identity = asdict(self) | {"base": fingerprint, "auto": None if self.settings else autos()}
        del identity["part"]
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def autos() -> str:
    """Digest of what auto means now."""
    told = json.dumps([asdict(auto) | {"rows": str(auto.rows)} for auto in AUTOS])
    return hashlib.sha256(told.encode()).hexdigest()[:8]


def trials(parts: Sequence[str], datasets: Sequence[str], seeds: int) -> list[Trial]:
    """Runs of the study, the most informative first: all settings at 100 examples, then at 500, then the other sizes, then
    all this with the next seed. Each is finished on all datasets first.
    """
    found: dict[tuple[object, ...], Trial] = {}
    for seed in range(seeds):
        for part, examples, settings in _cells():
            for dataset in datasets if part in parts else ():
                identity = (dataset, examples, seed, settings)
                found.setdefault(identity, Trial(part, dataset, examples, seed, settings))
    return list(found.values())


def _cells() -> Iterator[tuple[str, int | None, Settings | None]]:
    for examples, parts in AROUND.items():
        for part, levels in parts.items():
            for settings in (MIDDLE, *levels):
                yield part, examples, settings
    for part, settings in (("size", MIDDLE), ("auto", None)):
        for examples in SIZES:
            yield part, examples, settings
