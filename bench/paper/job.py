"""One model that is asked for; plain data, whose digest says whether it was trained before."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from bench.paper.settings import Settings, kind_of, settings_of

VERSION = 1  # of all that decides a result and is not in a job: data, splits, what "auto" means, words, looks
SEARCH = 2  # of the search: 2 accepts a token on rows of its own and never stops early
LOW_ROWS = 500  # at most, in the paper's low data
BEAMS = {"greedy": 1, "beam5": 5}  # the paper decodes tables by beams of 5


@dataclass(frozen=True, slots=True)
class Job:
    """One model that is asked for.

    Attributes:
        study: that asks for it.
        task: by name.
        method: as in `settings.METHODS`.
        rows: training rows; None takes all.
        sample: seed by which rows are chosen.
        seed: of the training.
        start: what a prefix begins with: `words`, `random`, `uniform`.
        words: that it begins with, if not the task's own.
        steps: updates, if not those of the settings.
        epochs: instead of those of the settings.
        rate: of learning, instead of that of the settings.
        limit_inputs: inputs that are scored; None takes all; 0 none, where only the held-out loss is asked for.
        decodings: of the texts, names of `BEAMS`.
    """

    study: str
    task: str
    method: str
    rows: int | None = None
    sample: int = 0
    seed: int = 0
    start: str = "words"
    words: str | None = None
    steps: int | None = None
    epochs: int | None = None
    rate: float | None = None
    limit_inputs: int | None = None
    decodings: tuple[str, ...] = ("greedy",)

    @property
    def low(self) -> bool:
        """Whether it is of the paper's section 6.3 or 7.4: few rows, of which 30 % choose."""
        return is_low(self.study, self.rows)

    @property
    def draw(self) -> int:
        """Version of the rule by which its rows are drawn."""
        return draw_of(self.study, self.task, self.rows)

    @property
    def search(self) -> int | None:
        """Version of the rule by which words are searched, if they are."""
        return SEARCH if kind_of(self.method) == "search" else None

    def settings(self, base: str) -> Settings:
        """Of its method, with what was asked for instead."""
        found = settings_of(self.method, base, self.task, low=(self.rows or LOW_ROWS) if self.low else None)
        if self.epochs is not None:
            found = replace(found, epochs=self.epochs, steps=None)
        return found if self.rate is None else replace(found, rate=self.rate)

    def key(self, base: str, fingerprint: str) -> str:
        """Digest of all that decides the model on a base: a job whose key has a record with its decodings is finished."""
        settings = {name: value for name, value in asdict(self.settings(base)).items() if value is not None}
        del settings["source"]  # where a figure comes from changes no result
        wanted = asdict(self)
        del wanted["decodings"]  # how a model writes does not change it
        identity = {
            **wanted,
            "base": fingerprint,
            "settings": settings,
            "version": VERSION,
            "draw": self.draw,
        }
        if self.search is not None:
            identity["search"] = self.search
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]

    def with_start(self, start: str, words: str | None) -> "Job":
        """The same with another beginning of the prefix."""
        return replace(self, start=start, words=words)

    def choosing(self, rate: float) -> "Job":
        """The same at a learning rate that is tried: no text is written, no input scored."""
        return replace(self, rate=rate, limit_inputs=0, decodings=())

    def also(self, decodings: Iterable[str]) -> "Job":
        """The same, written by these decodings too."""
        names = {*self.decodings, *decodings}
        return replace(self, decodings=tuple(name for name in BEAMS if name in names))


def is_low(study: str, rows: int | None) -> bool:
    """Whether so many rows of a study are the paper's low data."""
    few = rows is not None and rows <= LOW_ROWS
    return study in ("low-data", "init") or (study == "rates" and few)


def draw_of(study: str, task: str, rows: int | None) -> int:
    """Version of the rule by which rows are drawn: 2 draws each number of low data by itself, and deals DART by tables."""
    return 2 if task == "dart" or is_low(study, rows) else 1
