"""One run of the study of defaults (`bench.defaults`): the product's trainer, scored on the evaluation file."""

import time
from dataclasses import replace
from typing import Any

from bench.contestant import serve
from bench.contestants.carried_rows import drawn
from bench.defaults.trials import FOREIGN, Settings
from bench.losses import Silent, evaluation
from prefix_engine import load_base
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.evaluate import score
from trainer_worker.order import Order
from trainer_worker.pieces import at_once
from trainer_worker.refusal import Refused
from trainer_worker.rows import Encoded
from trainer_worker.training import Training

MOST_EXAMPLES = 3000
MOST_SCORED = 150  # rows of an evaluation file
OWN = {
    "aesop_fables": "An old fable with talking animals and a moral:",
    "booking_assistant": "What the booking assistant says to its customer:",
    "commit_messages": "The subject line of the commit to these files:",
    "dickinson_poems": "The rest of the poem by Emily Dickinson:",
    "e2e": "A sentence that describes this restaurant:",
    "maths_tutor": "The worked steps and the answer to this problem:",
    "quiz_master": "The trivia question to this category and answer:",
    "recipe_cook": "Directions for cooking this recipe, step by step:",
}


class Telling(Silent):
    """A report that keeps the settings."""

    def resolved(self, fields) -> None:
        """Keep them."""
        self.settings = fields


class Trials:
    """One base; evaluation files are read once."""

    def load(self, base: str, device: str | None, *, quick: bool) -> dict[str, Any]:
        """Load the base; its name and digest.

        Args:
            base: a carried one, a folder, or a name on the hub.
            device: of torch.
            quick: few examples, updates and scored rows, whatever is asked for.
        """
        self._base, self._quick = load_base(base, device), quick
        self._asked: dict[str, tuple[list[Encoded], float]] = {}
        return {"base": self._base.name, "fingerprint": self._base.fingerprint}

    def run(
        self, dataset: str, examples: int | None, seed: int, settings: dict[str, Any] | None
    ) -> dict[str, Any]:
        """Train and score; a run that the trainer refuses, say because it diverges, tells the code alone.

        Its seconds are the processor's: what else the machine does is not in them.
        """
        wishes = Hyperparameters() if settings is None else _wishes(Settings(**settings), dataset)
        if self._quick:
            examples, wishes = 30, replace(wishes, max_steps=4)
        training = drawn(dataset, examples or MOST_EXAMPLES, seed)
        report, began = Telling(), time.process_time()
        try:
            trained = Training(self._base, Order(wishes, seed, [("training", training)]), report).train()
        except Refused as error:
            return {"refused": error.code}
        seconds, prefix = time.process_time() - began, trained.prefix
        asked, plain = self._evaluation(dataset)
        loss = at_once(score(self._base, asked, prefix.tensor.to(self._base.device), prefix.position_offset))
        told = ("held_out_loss", "updates", "best_update", "training_rows", "held_out_rows")
        return {
            "loss": loss.loss,
            "base_loss": plain,
            "scored_tokens": loss.tokens,
            "seconds": round(seconds, 2),
            "tokens": trained.trained_tokens,
            "resolved": report.settings,
            **{name: trained.metrics[name] for name in told},
        }

    def _evaluation(self, dataset: str) -> tuple[list[Encoded], float]:
        """Rows of the evaluation file, and the base's loss on them."""
        if dataset not in self._asked:
            rows = evaluation(self._base, dataset, most=20 if self._quick else MOST_SCORED)
            self._asked[dataset] = rows, at_once(score(self._base, rows, None, 0)).loss
        return self._asked[dataset]


def _wishes(settings: Settings, dataset: str) -> Hyperparameters:
    words = {"own": OWN[dataset], "foreign": FOREIGN}.get(settings.start)
    wishes = Hyperparameters(
        prefix_length=settings.m,
        parametrization=settings.form,
        init="random" if settings.start == "random" else "words",
        init_text=words,
        learning_rate=settings.rate,
        max_steps=settings.updates,
        batch_size=settings.batch,
        dropout=settings.dropout,
        text_start="0",
    )
    wishes.check()
    return wishes


if __name__ == "__main__":
    serve(Trials())
