"""The demo's three users: whose voice, from which carried files, with which questions. Speaks to nobody."""

import gzip
import json
from dataclasses import dataclass
from pathlib import Path

from service.cli.terminal import CommandError

CARRIED = Path(__file__).resolve().parents[2] / "examples" / "data"


@dataclass(frozen=True, slots=True)
class Voice:
    """One user of the demo.

    Attributes:
        max_tokens: longest answer that is asked for.
        max_steps: updates of its training; the rarer rows need fewer.
    """

    user: str
    suffix: str
    dataset: str
    max_tokens: int
    max_steps: int

    @property
    def prefix(self) -> str:
        """The name that its prefix will have."""
        return f"{self.user}:{self.suffix}"


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt that no training and no choice of settings has seen, and what a person wrote for it."""

    prompt: str
    reference: str


VOICES = (
    Voice("alice", "front-desk", "booking_assistant", max_tokens=48, max_steps=240),
    Voice("bob", "quiz-master", "quiz_master", max_tokens=48, max_steps=240),
    Voice("emily", "poet", "dickinson_poems", max_tokens=96, max_steps=160),
)


def training_file(folder: Path, voice: Voice) -> Path:
    """Where a voice's training rows lie; CommandError if they are missing."""
    path = folder / f"{voice.dataset}_train.jsonl.gz"
    if not path.is_file():
        raise CommandError(
            f"{path} is missing; run the demo from a clone of the project, or name the folder with --data"
        )
    return path


def questions(folder: Path, voice: Voice, count: int) -> list[Question]:
    """The first `count` rows of the evaluation file: taken in order, so that nobody picked them."""
    found: list[Question] = []
    with gzip.open(folder / f"{voice.dataset}_eval.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            found.append(Question(row["prompt"], row["references"][0]))
            if len(found) == count:
                break
    return found
