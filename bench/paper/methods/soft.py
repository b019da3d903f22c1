"""Soft prompts at the embedding only: EMB-k of the paper (section 7.2), what prompt tuning serves."""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from bench.paper.host import Host
from bench.paper.methods.method import Method
from bench.paper.reading import Context, read


class Soft(Method):
    """`k` trained embeddings `[k, width]` at positions 0..k-1, begun as those of real words."""

    def __init__(self, host: Host, k: int, words: str) -> None:
        super().__init__(host)
        ids = torch.tensor(list(islice(cycle(host.encode(words)), k)), device=host.device)
        embeddings = host.model.transformer.wte.weight[ids].detach().clone()
        self.kept = {"embeddings": embeddings.requires_grad_()}

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`."""
        return read(self.model, prompts, soft=self.kept["embeddings"])
