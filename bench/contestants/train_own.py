"""This project's training step, of one job or of many: `trainer_worker.updates` over `prefix_engine.packed`."""

import random
from typing import Any

import torch

from bench.contestant import Stopwatch, serve
from bench.contestants import peak
from prefix_engine import load_base
from trainer_worker.initial import random_values
from trainer_worker.parametrization import Direct, Mlp
from trainer_worker.pieces import at_once
from trainer_worker.plan import Plan
from trainer_worker.rows import Encoded
from trainer_worker.together import PASS_TOKENS
from trainer_worker.updates import Learner, update

POSITIONS = 10


class Own:
    """One base; learners are made anew for each shape of work."""

    def load(self, folder: str, device: str) -> None:
        """Load the base."""
        self._base = load_base(folder, device)
        self._learners: list[Learner] = []
        self._shape: tuple[Any, ...] = ()

    def train(self, jobs: int, rows: int, tokens: int, form: str, *, together: bool) -> dict[str, Any]:
        """One update of each of `jobs` jobs of `rows` rows of `tokens` tokens, in passes as the worker's or one by one.

        Returns:
            Seconds, the highest memory meanwhile above what was there before the learners, and the losses.
        """
        if self._shape != (jobs, rows, tokens, form):
            self._learners = []
            self._before = peak.reset(self._base.device)
            self._learners = [self._learner(rows, tokens, form, seed) for seed in range(jobs)]
            self._shape = (jobs, rows, tokens, form)
        peak.reset(self._base.device)
        watch = Stopwatch()
        passes = self._passes() if together else [[learner] for learner in self._learners]
        seen = [found for learners in passes for found in at_once(update(self._base, learners))]
        return {
            "seconds": watch(),
            "memory": peak.highest(self._base.device) - self._before,
            "losses": [found.loss for found in seen],  # type: ignore[union-attr] # random rows do not diverge
        }

    def _passes(self) -> list[list[Learner]]:
        """As many jobs in a pass as the worker takes together (`trainer_worker.together`)."""
        each = max(1, PASS_TOKENS // self._learners[0].next_tokens())
        return [self._learners[i : i + each] for i in range(0, len(self._learners), each)]

    def _learner(self, rows: int, tokens: int, form: str, seed: int) -> Learner:
        config, draw = self._base.config, random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        values = random_values(self._base, POSITIONS, generator)
        plan = Plan(
            "direct" if form == "direct" else "mlp",
            POSITIONS,
            POSITIONS,
            1e-3,
            rows,
            10_000,
            0,
            0.0,
            10_000,
            4,
            seed,
        )
        made = Direct(values) if form == "direct" else Mlp(values.shape, generator, self._base.device)
        texts = [Encoded(tuple(draw.randrange(config.vocab) for _ in range(tokens)), 1) for _ in range(rows)]
        return Learner(plan, made, texts)


if __name__ == "__main__":
    serve(Own())
