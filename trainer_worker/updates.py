"""One optimiser step of a list of jobs: one forward and backward pass, then each job's own step.

Every job has its own prefix, batch, clip, learning rate and optimiser state; they share the frozen base's
pass. Their losses are added, and since no parameter is shared, each gradient is that of its own job.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefix_engine.base import Base
from prefix_engine.packed import Text, token_losses
from trainer_worker.adam import AdamW
from trainer_worker.batches import Batches
from trainer_worker.parametrization import Parametrization
from trainer_worker.pieces import Pieces, cut
from trainer_worker.plan import Plan
from trainer_worker.refusal import Refused
from trainer_worker.rows import Encoded

CLIP = 1.0
PIECE_TOKENS = 2048  # and positions of prefixes before them: what lies in memory, and what others wait for


@dataclass(frozen=True, slots=True)
class Updated:
    """What one job's update saw: mean loss of its tokens, the share that was likeliest, their number."""

    loss: float
    accuracy: float
    tokens: int


class Learner:
    """One job's part of the loop; `done` updates are behind it."""

    def __init__(self, plan: Plan, form: Parametrization, rows: Sequence[Encoded]) -> None:
        self.plan, self.form, self.rows = plan, form, rows
        self.batches = Batches([len(row.tokens) for row in rows], plan.batch_size, plan.seed)
        self.optimizer = AdamW(form.parameters.values(), plan.weight_decay)
        self.done = 0

    def next_tokens(self) -> int:
        """Tokens of the rows that its next update sees."""
        return sum(len(self.rows[row].tokens) for row in self.batches[self.done])

    def prefix(self) -> Tensor:
        """The prefix that its next update trains: with dropout some of its numbers are 0, the others larger for it.

        As `prefix_dropout` in the code of Li & Liang 2021, on the keys and values that come out of the MLP; there
        each row of a batch has a mask of its own, here they share the update's. The mask follows from the seed and
        the number of the update alone, so that a resumed run and one in company draw the same.
        """
        values, share = self.form.prefix(), self.plan.dropout
        if not share:
            return values
        drawn = hashlib.sha256(f"dropout {self.plan.seed} {self.done}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(drawn[:4]))
        kept = torch.rand(values.shape, generator=generator) >= share
        return values * (kept / (1 - share)).to(values.device)

    def step(self) -> None:
        """Clip, move the parameters, forget the gradients.

        Raises:
            Refused: a gradient is not finite.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.form.parameters.values(), CLIP, foreach=False)
        self.require_finite(float(norm))
        self.optimizer.step(self.plan.rate(self.done))
        self.optimizer.forget_gradients()
        self.done += 1

    def require_finite(self, value: float) -> None:
        """Refuse to go on with NaN or infinity."""
        if not math.isfinite(value):
            raise Refused(
                "diverged",
                f"the loss or its gradient was not finite after {self.done} updates; choose a lower learning rate",
                "hyperparameters.learning_rate",
            )


def update(base: Base, learners: Sequence[Learner]) -> Pieces[list[Updated | Refused]]:
    """Move every learner by one update; those whose loss or gradient is not finite are refused, and not moved.

    Rows go through the base in pieces of `PIECE_TOKENS`, whose gradients add up to those of the whole: long
    rows cost time, not memory. It pauses between them, and no learner is moved before the last.
    """
    prefixes = [learner.prefix() for learner in learners]
    leaves = [prefix.detach().requires_grad_() for prefix in prefixes]
    batches = [[learner.rows[row] for row in learner.batches[learner.done]] for learner in learners]
    counts = [sum(row.carrying for row in batch) for batch in batches]
    sums = [[0.0, 0.0] for _ in learners]
    texts = [
        (place, row.behind(place, learners[place].plan.position_offset))
        for place, batch in enumerate(batches)
        for row in batch
    ]
    for number, piece in enumerate(_pieces(texts, [leaf.shape[3] for leaf in leaves])):
        if number:
            yield
        found = token_losses(base, [text for _, text in piece], leaves)
        owner = torch.tensor([place for place, _ in piece], device=base.device)[found.text]
        total = found.losses.new_zeros(())
        for place, count in enumerate(counts):
            mine = owner == place
            share = found.losses[mine].sum() / count
            total = total + share
            sums[place][0] += float(share.detach())
            sums[place][1] += float(found.correct[mine].sum())
        total.backward()  # type: ignore[no-untyped-call]
    seen: list[Updated | Refused] = []
    for learner, prefix, leaf, (loss, correct), count in zip(
        learners, prefixes, leaves, sums, counts, strict=True
    ):
        try:
            learner.require_finite(loss)
            prefix.backward(leaf.grad)  # type: ignore[no-untyped-call]
            learner.step()
        except Refused as error:
            seen.append(error.with_traceback(None))  # its frames hold every job's rows
        else:
            seen.append(Updated(loss, correct / count, count))
    return seen


def _pieces(texts: Sequence[tuple[int, Text]], lengths: Sequence[int]) -> list[list[tuple[int, Text]]]:
    """Texts, shortest first, in pieces of about as many positions as may be in memory at once.

    `lengths` are those of the prefixes: each row has keys and values of its own prefix before it.
    """
    shortest_first = sorted(texts, key=lambda placed: len(placed[1].tokens))
    return list(cut(shortest_first, lambda placed: lengths[placed[0]] + len(placed[1].tokens), PIECE_TOKENS))
