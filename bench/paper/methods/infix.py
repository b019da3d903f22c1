"""Infixes: trained keys and values between the input and the answer, `[x; INFIX; y]` (the paper, section 7.3).

The input cannot see them, only the separator and the answer do. They take the positions between the two.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import torch

from bench.paper.host import Host
from bench.paper.methods.method import Method
from bench.paper.reading import Context, read
from trainer_worker.initial import activations


class Infix(Method):
    """Keys and values `[layers, 2, heads, m, head_dim]`, begun as the activations of real words."""

    def __init__(self, host: Host, m: int, words: str) -> None:
        super().__init__(host)
        values = activations(host.base, list(islice(cycle(host.encode(words)), m)))
        self.kept = {"infix": values.clone().requires_grad_()}

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`; the base reads the inputs, so no gradient goes there."""
        with torch.no_grad():
            read_alone = read(self.model, prompts)
        if not read_alone.layers:  # only empty inputs: the infix is a prefix
            rows = len(prompts)
            return read(
                self.model, [[]] * rows, prefix=self.kept["infix"], offset=self.kept["infix"].shape[3]
            )
        return read_alone.then(self.kept["infix"])
