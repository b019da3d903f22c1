"""Which rows an update sees: rows of like length together, in an order that the seed decides.

The order of an epoch follows from (seed, epoch) alone, so a resumed run needs no more than its update
number to go on where it was.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

POOL = 16  # batches whose rows are sorted together: like lengths, yet new company every epoch
SEED_MIX = 1_000_003  # times the seed: epochs of seeds that are next to one another are not one another's


class Batches:
    """Batches of row indexes, epoch after epoch; every row once an epoch."""

    def __init__(self, lengths: Sequence[int], size: int, seed: int) -> None:
        self._lengths, self._size, self._seed = lengths, size, seed
        self.per_epoch = -(-len(lengths) // size)
        self._epoch = lru_cache(maxsize=1)(self._ordered)

    def __getitem__(self, update: int) -> tuple[int, ...]:
        """Rows of the update with that number, from 0."""
        epoch, place = divmod(update, self.per_epoch)
        return self._epoch(epoch)[place]

    def _ordered(self, epoch: int) -> list[tuple[int, ...]]:
        generator = torch.Generator().manual_seed((self._seed * SEED_MIX + epoch) % (1 << 63))
        rows = torch.randperm(len(self._lengths), generator=generator).tolist()
        pool = self._size * POOL
        batches = []
        for start in range(0, len(rows), pool):
            pooled = sorted(rows[start : start + pool], key=self._lengths.__getitem__)
            batches += [tuple(pooled[i : i + self._size]) for i in range(0, len(pooled), self._size)]
        return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]
