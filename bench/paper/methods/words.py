"""Prompts of real words before the input: written by hand, or found by gradient-guided search.

The search is AutoPrompt's (Shin et al. 2020) with HotFlip's estimate (Ebrahimi et al. 2018): the change of the
loss by putting token w in place i is, to first order, the gradient at i times the embedding of w. As there, one batch
gives the gradient and another judges the candidates.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from bench.paper.host import Host
from bench.paper.methods.method import Method, Mover, pieces
from bench.paper.reading import Context, heads, loss, read
from trainer_worker.plan import Plan
from trainer_worker.rows import Encoded

CANDIDATES = 10  # Shin et al. try 10 to 100 tokens an update
JUDGES = 32  # rows: of four alone most changes that look better are not


class Words(Method):
    """Tokens `[k]` that stand before every input, at positions 0..k-1. Nothing is trained."""

    def __init__(self, host: Host, ids: Sequence[int]) -> None:
        super().__init__(host)
        self.kept = {"tokens": torch.tensor(list(ids), dtype=torch.int32, device=host.device)}

    @property
    def text(self) -> str:
        """The tokens as text."""
        return self.host.base.tokenizer.decode(self.kept["tokens"].tolist())

    @property
    def trained(self) -> int:
        """No number is trained by gradient; the tokens are chosen."""
        return 0

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`."""
        return self.behind(prompts, self.embeddings())

    def embeddings(self) -> Tensor:
        """`[k, width]`, those of the tokens."""
        return self.model.transformer.wte.weight[self.kept["tokens"].long()]

    def behind(self, prompts: Sequence[Sequence[int]], embeddings: Tensor) -> Context:
        """A context behind any embeddings."""
        return read(self.model, prompts, soft=embeddings)


class Search(Words):
    """AutoPrompt: the tokens are replaced one by one where that lowers the loss of rows drawn for it."""

    def __init__(self, host: Host, k: int, words: str) -> None:
        super().__init__(host, list(islice(cycle(host.encode(words)), k)))

    def mover(self, plan: Plan, rows: Sequence[Encoded]) -> Mover:
        """See `Method`."""
        return Flip(self, plan.seed, rows)


class Flip(Mover):
    """One update: a place by chance, the most promising tokens for it, the best of them if it is better.

    Args:
        method: whose tokens are replaced.
        seed: of the places and of the judges.
        rows: all that is trained on, of which the judges are drawn.
    """

    def __init__(self, method: Search, seed: int, rows: Sequence[Encoded]) -> None:
        self._method, self._rows = method, rows
        self._generator = torch.Generator().manual_seed(seed)

    def update(self, rows: Sequence[Encoded], rate: float) -> float:  # noqa: ARG002 - a search has no rate
        """See `Mover`."""
        method, tokens = self._method, self._method.kept["tokens"]
        place = int(torch.randint(len(tokens), (1,), generator=self._generator))
        before, gradient = self._gradient(rows)
        table = method.model.transformer.wte.weight
        promise = -(table @ gradient[place])
        promise[[method.host.template.end_id, int(tokens[place])]] = -torch.inf
        judges = self._judges(rows)
        found, best = int(tokens[place]), self._mean(judges)
        for candidate in promise.topk(CANDIDATES).indices.tolist():
            tokens[place] = candidate
            after = self._mean(judges)
            if after < best:
                found, best = candidate, after
        tokens[place] = found
        return before

    def _gradient(self, rows: Sequence[Encoded]) -> tuple[float, Tensor]:
        """Mean loss and its gradient in the embeddings, `[k, width]`."""
        embeddings = self._method.embeddings().detach().requires_grad_()
        count, seen = sum(row.carrying for row in rows), 0.0
        for piece in pieces(rows):
            total, _ = loss(self._method.model, self._method.behind(heads(piece), embeddings), piece)
            (total / count).backward()
            seen += float(total.detach())
        assert embeddings.grad is not None
        return seen / count, embeddings.grad

    def _judges(self, rows: Sequence[Encoded]) -> list[Encoded]:
        """Rows drawn from those outside the update's batch, from all where the batch has all."""
        batch = set(map(id, rows))
        others = [row for row in self._rows if id(row) not in batch] or list(self._rows)
        order = torch.randperm(len(others), generator=self._generator)[:JUDGES]
        return [others[place] for place in order.tolist()]

    def _mean(self, rows: Sequence[Encoded]) -> float:
        return self._method.score(rows)
