"""This project's training of one job with its defaults, looked at on rows that it does not know."""

from typing import Any

from bench.contestant import serve
from bench.contestants.carried_rows import drawn
from bench.contestants.curve import Curve
from bench.losses import Silent, evaluation
from prefix_engine import load_base
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.evaluate import score
from trainer_worker.order import Order
from trainer_worker.pieces import at_once
from trainer_worker.training import Training
from trainer_worker.updates import Learner, Updated, update


class Own:
    """One base."""

    def load(self, base: str, device: str) -> None:
        """Load the base."""
        self._base = load_base(base, device)

    def train(
        self, dataset: str, examples: int, scored: int, seed: int, every: int, updates: int | None
    ) -> dict[str, Any]:
        """Train as a job that asks for nothing; `updates` at most, if told.

        The time is that of reading the rows, of the start and of all updates. The product's own looks at the rows
        that it holds out, by which it stops early, are taken off as those of this bench are.

        Returns:
            The curve, a look every so many updates and one at the end; the base's loss on the same rows, their
            tokens, and what the run planned and trained on.
        """
        asked, lines = evaluation(self._base, dataset, most=scored), drawn(dataset, examples, seed)
        plain = at_once(score(self._base, asked, None, 0))
        order = Order(Hyperparameters(max_steps=updates), seed, [("training", lines)])
        curve = Curve()
        with curve.counted():
            training = Training(self._base, order, Silent())
            at_once(training.prepare())
        steps, seen, learner = training.steps(), None, None
        while True:
            try:
                asks = steps.send(seen)
            except StopIteration:
                break
            seen = None
            if asks is None:
                continue
            learner = asks
            if learner.done % every == 0:
                self._look(curve, learner, asked)
            with curve.counted():
                (found,) = at_once(update(self._base, [learner]))
            seen = found if isinstance(found, Updated) else _raised(found)
        assert learner is not None
        self._look(curve, learner, asked)
        return {
            "curve": curve.points,
            "base_loss": plain.loss,
            "scored_tokens": plain.tokens,
            "planned": learner.plan.updates,
            "rows": len(learner.rows),
        }

    def _look(self, curve: Curve, learner: Learner, asked: list[Any]) -> None:
        prefix = learner.form.prefix().detach()
        found = at_once(score(self._base, asked, prefix, learner.plan.position_offset))
        curve.look(learner.done, found.loss)


def _raised(error: Exception) -> Updated:
    raise error


if __name__ == "__main__":
    serve(Own())
