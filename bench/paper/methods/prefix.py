"""Prefixes, trained by the product's own trainer and read by transformers as past keys and values."""

import json
from collections.abc import Sequence

import torch

from bench.losses import Silent
from bench.paper.host import Host
from bench.paper.methods.method import Method
from bench.paper.reading import Context, read
from prefix_engine.prefix import Prefix
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.order import Order, Version
from trainer_worker.rows import Row
from trainer_worker.training import Trained, Training


class ProductPrefix(Method):
    """A prefix `[layers, 2, heads, m, head_dim]`; `position_offset` is where the text behind it starts."""

    def __init__(self, host: Host, prefix: Prefix | None = None) -> None:
        super().__init__(host)
        if prefix is not None:
            self.take(prefix)

    def take(self, prefix: Prefix) -> None:
        """Stand behind this prefix from now on."""
        self.kept = {"prefix": prefix.tensor.to(self.host.device)}
        self._offset = prefix.position_offset

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`."""
        return read(self.model, prompts, prefix=self.kept["prefix"], offset=self._offset)

    def train(
        self, wishes: Hyperparameters, seed: int, rows: Sequence[Row], held_out: Sequence[Row], start: str
    ) -> Trained:
        """Run the product's trainer and take its prefix.

        Args:
            wishes: the job's settings.
            seed: of the job.
            rows: trained on.
            held_out: it stops early and keeps its best by these.
            start: `words` as the settings say, `random` (standard normal) or `uniform` (0 to 1).
        """
        sides = ("training", jsonl(rows)), ("held-out", jsonl(held_out))
        version = self._uniform(wishes, seed) if start == "uniform" else None
        order = Order(wishes, seed, [sides[0]], validation=sides[1], start=version)
        trained = Training(self.host.base, order, Silent()).train()
        self.take(trained.prefix)
        return trained

    def _uniform(self, wishes: Hyperparameters, seed: int) -> Version:
        """The random start of the paper's section 7.4 as a version to go on from: uniform between 0 and 1."""
        base = self.host.base
        m = wishes.prefix_length or 1
        shape = (base.config.layers, 2, base.config.heads, m, base.config.head_dim)
        values = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
        offset = m if wishes.text_start == "m" else 0
        payload = Prefix(values, offset, base.fingerprint).to_bytes()
        return Version("uniform", payload, self.host.template)


def jsonl(rows: Sequence[Row]) -> bytes:
    """Rows as a file of the store."""
    lines = (json.dumps({"prompt": row.prompt, "completion": row.completion}) for row in rows)
    return "\n".join(lines).encode() + b"\n"
