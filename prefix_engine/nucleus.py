"""A draw from the best tokens of a vocabulary that is not sorted for it.

Where the best few hundred tokens hold too little of the probability, all that has to be known in order is where
top_k and top_p end and where the drawn token lies. Tokens are counted into buckets by their logit, best first,
and only the buckets in which that happens are sorted.
"""

import math
from bisect import bisect_left, bisect_right

import torch
from torch import Tensor

_BUCKETS = 1024
_DEEPEST = 40.0  # a token of e**-40 of the best one's probability and less lies in the last bucket
_FLATTEST = 1e-290  # so that the width of a bucket does not underflow


def drawn(scaled: Tensor, shares: Tensor, top_k: int, top_p: float, point: float) -> int:
    """The token that lies at `point` of what top_k and top_p leave: best first, of equals the lower id first.

    Args:
        scaled: logits `[vocab]` over temperature, in float64, the best of them 0.
        shares: their softmax.
        top_k: tokens at most.
        top_p: as in `request.Sampling`, of what top_k leaves.
        point: from 0 to below 1.
    """
    buckets = _Buckets(scaled, shares)
    masses = buckets.masses
    whole = masses[-1]
    last = bisect_left(masses, whole)
    if top_k < len(scaled):
        counts = buckets.counts()
        last = bisect_left(counts, top_k)
        before = counts[last - 1] if last else 0
        whole = float(buckets.sorted(last)[1][top_k - before - 1])
    if top_p < 1:
        last = min(bisect_left(masses, top_p * whole), last)
        edges = buckets.sorted(last)[1]
        end = min(int(torch.searchsorted(edges, top_p * whole)), len(edges) - 1)
        whole = min(whole, float(edges[end]))
    # The product may round up to the last edge, behind which only tokens lie that were cut or have probability 0.
    at = min(point * whole, math.nextafter(whole, 0.0))
    ids, edges = buckets.sorted(min(bisect_right(masses, at), last))
    at = min(at, math.nextafter(float(edges[-1]), 0.0))
    return int(ids[torch.searchsorted(edges, at, right=True)])


class _Buckets:
    """Tokens by their logit; `masses` is the probability of each bucket and all before it."""

    def __init__(self, scaled: Tensor, shares: Tensor) -> None:
        self._scaled, self._shares = scaled, shares
        depth = min(max(-float(scaled.min()), _FLATTEST), _DEEPEST)
        self._of = (scaled * (-(_BUCKETS - 1) / depth)).clamp_(max=_BUCKETS - 1).long()
        self.masses: list[float] = torch.bincount(self._of, self._shares, _BUCKETS).cumsum(0).tolist()
        self._sorted: dict[int, tuple[Tensor, Tensor]] = {}

    def counts(self) -> list[int]:
        """Tokens in each bucket and all before it."""
        return torch.bincount(self._of, minlength=_BUCKETS).cumsum(0).tolist()

    def sorted(self, bucket: int) -> tuple[Tensor, Tensor]:
        """Ids of a bucket, best first, and the probability of each and all tokens before it."""
        if bucket not in self._sorted:
            ids = (self._of == bucket).nonzero().squeeze(1)
            ids = ids[self._scaled[ids].sort(stable=True, descending=True).indices]
            before = self.masses[bucket - 1] if bucket else 0.0
            self._sorted[bucket] = ids, self._shares[ids].cumsum(0) + before
        return self._sorted[bucket]
