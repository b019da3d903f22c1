"""What a checkpoint belongs to: a digest of everything that decides a run. Knows no tensors of the run itself.

Beside the job's own data and settings these are the trainer's constants and which rows are held out, so that a release
that changes one of them begins a run anew: half of it by each would be neither's.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence

from prefix_engine.base import Base
from prefix_engine.template import Template
from trainer_worker import adam, batches, initial, parametrization, run, updates
from trainer_worker.auto import Init
from trainer_worker.order import Order
from trainer_worker.pieces import Pieces
from trainer_worker.plan import Plan
from trainer_worker.rows import Row


def identity(
    base: Base, order: Order, plan: Plan, init: Init | None, template: Template, held_out: Sequence[Row]
) -> Pieces[str]:
    """Digest of a run, as hexadecimal; pauses between files.

    Args:
        base: that it trains on.
        order: its data and what was asked for.
        plan: what that became.
        init: what the prefix starts from; None if it is a version.
        template: how rows are read.
        held_out: rows that it is judged by; which these are counts, their texts stand in the files.
    """
    wishes = order.wishes.to_json()
    settings = [plan.to_json(), wishes, init, template.to_json(), initial.WORDS, _constants()]
    digest = hashlib.sha256(base.fingerprint.encode())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    files = [*order.training, *([] if order.validation is None else [order.validation])]
    for number, (_, data) in enumerate(files):
        if number:
            yield
        digest.update(hashlib.sha256(data).digest())
    digest.update(hashlib.sha256(b"" if order.start is None else order.start.payload).digest())
    digest.update(_places(held_out))
    return digest.hexdigest()


def _constants() -> list[object]:
    """What decides a run beside its plan. What changes rounding alone, as sizes of pieces do, is none."""
    order = [batches.POOL, batches.SEED_MIX]
    return [order, updates.CLIP, adam.BETAS, adam.EPSILON, run.LOOK_TOKENS, parametrization.MID]


def _places(rows: Iterable[Row]) -> bytes:
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.file} {row.line}\n".encode())
    return digest.digest()
