"""The loop that trains every method but the prefix: the product's plan, batches, looks and best-kept, for all alike.

The prefix goes through the product's own trainer, whose loop has the same rules: a look at an even sample of the
held-out rows a tenth of the run apart, stop after four looks without a better loss, keep the best seen.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench.paper.methods.method import Method
from trainer_worker.batches import Batches
from trainer_worker.plan import Plan
from trainer_worker.rows import Encoded
from trainer_worker.run import looked_at


class Diverged(Exception):
    """The loss is not finite; choose a lower `--rate`."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a run did: updates made, which was best, held-out losses by update, seconds."""

    updates: int
    best_update: int
    curve: list[tuple[int, float]]
    seconds: float


def fit(method: Method, rows: Sequence[Encoded], held_out: Sequence[Encoded], plan: Plan) -> Fitted:
    """Train a method and leave it at its best.

    Raises:
        Diverged: the held-out loss is NaN or infinite.
    """
    began = time.monotonic()
    sample = looked_at(held_out)
    batches = Batches([len(row.tokens) for row in rows], plan.batch_size, plan.seed)
    mover = method.mover(plan, rows)
    best_loss, best, best_update, stale, done = math.inf, method.state(), 0, 0, 0
    curve: list[tuple[int, float]] = []
    while True:
        if done % plan.eval_every == 0 or done == plan.updates:
            found = method.score(sample)
            if not math.isfinite(found):
                raise Diverged(f"held-out loss {found} after {done} updates; give a lower --rate")
            curve.append((done, found))
            if found < best_loss:
                best_loss, best, best_update, stale = found, method.state(), done, 0
            else:
                stale += 1
        if done == plan.updates or stale >= plan.patience:
            break
        mover.update([rows[row] for row in batches[done]], plan.rate(done))
        done += 1
    method.restore(best)
    return Fitted(done, best_update, curve, time.monotonic() - began)
