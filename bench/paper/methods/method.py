"""What a method is to the harness: something that is trained, kept, and stands before the answer."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel

from bench.paper.host import Host
from bench.paper.reading import Context, heads, loss
from trainer_worker.pieces import cut
from trainer_worker.plan import Plan
from trainer_worker.rows import Encoded
from trainer_worker.updates import CLIP, PIECE_TOKENS

_SCORED_TOKENS = 4096


class Method(ABC):
    """One way to make the frozen checkpoint do a task.

    Attributes:
        model: that computes; the host's own, unless the method changes weights or puts modules in.
        kept: tensors by name that training finds and that must be stored to use it again.
        dropout: whether training runs the model in train mode, as transformers' trainer does.
    """

    dropout = False

    def __init__(self, host: Host) -> None:
        self.host = host
        self.model: GPT2LMHeadModel = host.model
        self.kept: dict[str, Tensor] = {}

    @abstractmethod
    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """What stands before the answers to these prompts (without their last token), differentiable."""

    @property
    def trained(self) -> int:
        """Numbers that training moves."""
        return sum(tensor.numel() for tensor in self.kept.values())

    @property
    def stored_bytes(self) -> int:
        """Bytes that must be kept, beside the base, to use what was trained."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.kept.values())

    def state(self) -> dict[str, Tensor]:
        """A copy of what is kept."""
        return {name: tensor.detach().clone() for name, tensor in self.kept.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go back to such a copy."""
        with torch.no_grad():
            for name, tensor in self.kept.items():
                tensor.copy_(state[name])

    def loss(self, rows: Sequence[Encoded]) -> tuple[Tensor, int]:
        """Summed loss of the rows' answers in nats, and the number of their tokens."""
        return loss(self.model, self.context(heads(rows)), rows)

    def score(self, rows: Sequence[Encoded]) -> float:
        """Held-out loss, nats a token."""
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in pieces(rows, _SCORED_TOKENS):
                found, tokens = self.loss(batch)
                total, count = total + float(found), count + tokens
        return total / count

    def mover(self, plan: Plan, rows: Sequence[Encoded]) -> "Mover":  # noqa: ARG002 - a search draws from the rows
        """What makes the updates on batches of these rows."""
        return Gradient(self, plan)


class Mover(ABC):
    """Makes one update after the other."""

    @abstractmethod
    def update(self, rows: Sequence[Encoded], rate: float) -> float:
        """Move the method by these rows; the mean loss that it had on them, in nats a token."""


class Gradient(Mover):
    """AdamW with the product's clip, on everything that is kept."""

    def __init__(self, method: Method, plan: Plan) -> None:
        self._method = method
        self._moved = list(method.kept.values())
        self._optimizer = torch.optim.AdamW(
            self._moved, lr=plan.learning_rate, weight_decay=plan.weight_decay, fused=True
        )

    def update(self, rows: Sequence[Encoded], rate: float) -> float:
        """See `Mover`."""
        count, seen = sum(row.carrying for row in rows), 0.0
        self._method.model.train(self._method.dropout)
        for piece in pieces(rows):
            total, _ = self._method.loss(piece)
            (total / count).backward()
            seen += float(total.detach())
        self._method.model.eval()
        torch.nn.utils.clip_grad_norm_(self._moved, CLIP)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._optimizer.step()
        self._optimizer.zero_grad()
        return seen / count


def pieces(rows: Sequence[Encoded], most: int = PIECE_TOKENS) -> Iterator[list[Encoded]]:
    """Rows, shortest first, in pieces of about as many tokens as may be in memory at once."""
    return cut(sorted(rows, key=lambda row: len(row.tokens)), lambda row: len(row.tokens), most)
