"""A job's hyperparameters, resolved: what was asked for, and for the rest what "auto" means (`auto.AUTOS`)."""

from dataclasses import asdict, dataclass
from typing import Any

from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.auto import Form, Init, auto_for

EVALUATIONS = 10
MOST_EVALUATIONS = 1000  # each is an event, that is a transaction
PATIENCE = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run does.

    Attributes:
        m: positions of the prefix.
        position_offset: where text starts, m or 0.
        updates: most updates.
        warmup: updates over which the learning rate rises; then it falls linearly to 0.
        eval_every: updates between two looks at the held-out rows.
        patience: looks without a better loss after which the run ends.
        dropout: share of the prefix's numbers that an update leaves out; see `updates.Learner.prefix`.
    """

    parametrization: Form
    m: int
    position_offset: int
    learning_rate: float
    batch_size: int
    updates: int
    warmup: int
    weight_decay: float
    eval_every: int
    patience: int
    seed: int
    dropout: float = 0.0

    def rate(self, update: int) -> float:
        """Learning rate of the update with that number, from 0."""
        if update < self.warmup:
            return self.learning_rate * (update + 1) / (self.warmup + 1)
        return self.learning_rate * (self.updates - update) / max(1, self.updates - self.warmup)

    def words(self) -> str:
        """As a person reads it."""
        told = (
            f"{self.parametrization}, {self.m} positions, text from {'m' if self.position_offset else '0'}, "
            f"at most {self.updates} updates of {self.batch_size} rows, learning rate {self.learning_rate:g}"
        )
        return f"{told}, dropout {self.dropout:g}" if self.dropout else told

    def to_json(self) -> dict[str, Any]:
        """For the checkpoint's identity and for the metrics."""
        return asdict(self)


def resolve(wishes: Hyperparameters, *, m: int, position_offset: int, rows: int, seed: int) -> Plan:
    """Fill in what was not asked for.

    Args:
        wishes: what was asked for.
        m: positions of the prefix.
        position_offset: where text starts.
        rows: training rows.
        seed: of the run.
    """
    auto = auto_for(rows)
    form = wishes.parametrization or auto.form
    rate = wishes.learning_rate or auto.rate(form) * (wishes.learning_rate_multiplier or 1.0)
    batch = wishes.batch_size or auto.batch
    per_epoch = -(-rows // batch)
    updates = _asked_updates(wishes, per_epoch) or auto.updates(per_epoch)
    warmup = updates // 10 if wishes.warmup_steps is None else wishes.warmup_steps
    return Plan(
        parametrization=form,
        m=m,
        position_offset=position_offset,
        learning_rate=rate,
        batch_size=batch,
        updates=updates,
        warmup=min(warmup, updates - 1),
        weight_decay=wishes.weight_decay or 0.0,
        eval_every=max(1, wishes.eval_steps or updates // EVALUATIONS, updates // MOST_EVALUATIONS),
        patience=PATIENCE,
        seed=seed,
        dropout=auto.dropout if wishes.dropout is None else wishes.dropout,
    )


def resolved(wishes: Hyperparameters, plan: Plan, *, rows: int, init: Init | None) -> dict[str, Any]:
    """The plan in the words of a request that asks for the same run, as far as its bounds let.

    A learning rate that was asked for has no multiplier: the two exclude each other.

    Args:
        wishes: that the plan was made for.
        plan: of the run.
        rows: training rows.
        init: what the prefix starts from; None if it is a version.
    """
    found: dict[str, Any] = {
        "n_epochs": -(-plan.updates // -(-rows // plan.batch_size)),
        "batch_size": plan.batch_size,
        "prefix_length": plan.m,
        "max_steps": plan.updates,
        "warmup_steps": plan.warmup,
        "weight_decay": plan.weight_decay,
        "dropout": plan.dropout,
        "eval_steps": plan.eval_every,
        "parametrization": plan.parametrization,
        "text_start": "m" if plan.position_offset else "0",
    }
    if init is not None:
        found["init"] = init
    if wishes.learning_rate is None:
        found["learning_rate_multiplier"] = wishes.learning_rate_multiplier or 1.0
    return found


def _asked_updates(wishes: Hyperparameters, per_epoch: int) -> int | None:
    if wishes.n_epochs is None:
        return wishes.max_steps
    updates = wishes.n_epochs * per_epoch
    return updates if wishes.max_steps is None else min(updates, wishes.max_steps)
