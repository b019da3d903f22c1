"""Attention of one step: each packed token with the prefix and the text of its own row, out of pages.

Everything that does not depend on the layer (slots, block tables, masks) is built once, on entry. Decode
rows are cut into groups of like length; a group is one gather and one SDPA over all its rows. A chunk of
a prompt is its own SDPA.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from prefix_engine.kv import PagedMemory
from prefix_engine.pages import pages_for
from prefix_engine.scheduler import Chunk, Plan
from prefix_engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class _Group:
    """Tokens `start..stop` of the packed list; `rows` block tables side by side."""

    start: int
    stop: int
    rows: int
    where: Tensor  # [heads * rows * blocks], see PagedMemory.blocks
    mask: Tensor  # additive; decode [1, rows, 1, slots], chunk [1, 1, tokens, slots]


class StepAttention:
    """Call it with (layer, qkv `[n, 3, heads, head_dim]`); see `gpt2.Attend`.

    The packed tokens are `order` (the plan's decode rows, shortest first) and then the plan's chunks.
    """

    def __init__(self, memory: PagedMemory, plan: Plan) -> None:
        self._memory = memory
        self._device = memory.content.device
        self.order = tuple(sorted(plan.decode, key=self._blocks))
        self._places = memory.places(torch.tensor(self._slots_of(plan), device=self._device))
        self._groups = [*self._decode_groups(), *self._chunk_groups(plan)]
        # Taken once a step: fresh memory for every layer would cost more than the copy into it.
        longest = max((len(group.where) for group in self._groups), default=0)
        width = memory.page * memory.content.shape[5]
        self._scratch = torch.empty(2, longest, width, device=self._device, dtype=memory.content.dtype)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Store the step's keys and values, then mix: `[n, heads, head_dim]`."""
        memory = self._memory
        query, key, value = qkv.unbind(1)
        memory.write(layer, self._places, key, value)
        out = torch.empty_like(query)
        for group in self._groups:
            q = query[group.start : group.stop]
            k = self._gather(layer, 0, group)
            v = self._gather(layer, 1, group)
            if group.rows == q.shape[0]:
                mixed = functional.scaled_dot_product_attention(
                    q.transpose(0, 1).unsqueeze(2), k, v, attn_mask=group.mask
                )
                out[group.start : group.stop] = mixed.squeeze(2).transpose(0, 1)
            else:
                mixed = functional.scaled_dot_product_attention(
                    q.transpose(0, 1).unsqueeze(0), k.transpose(0, 1), v.transpose(0, 1), attn_mask=group.mask
                )
                out[group.start : group.stop] = mixed[0].transpose(0, 1)
        return out

    def _gather(self, layer: int, part: int, group: _Group) -> Tensor:
        """`[heads, rows, slots, head_dim]` of a group, keys (part 0) or values (1)."""
        heads, _, head_dim = self._memory.content.shape[3:]
        out = self._scratch[part, : len(group.where)]
        torch.index_select(self._memory.rows(layer, part), 0, group.where, out=out)
        return out.view(heads, group.rows, -1, head_dim).float()

    def _where(self, tables: list[list[int]]) -> Tensor:
        return self._memory.blocks(torch.tensor(tables, device=self._device))

    def _slot(self, sequence: Sequence, place: int) -> int:
        page = self._memory.page
        return sequence.pages[place // page] * page + place % page

    def _slots_of(self, plan: Plan) -> list[int]:
        slots = [self._slot(sequence, sequence.computed) for sequence in self.order]
        for chunk in plan.chunks:
            slots += [self._slot(chunk.sequence, place) for place in range(chunk.start, chunk.stop)]
        return slots

    def _blocks(self, sequence: Sequence) -> int:
        return len(sequence.prefix_pages) + pages_for(sequence.computed + 1, self._memory.page)

    def _decode_groups(self) -> list[_Group]:
        groups: list[_Group] = []
        start = 0
        while start < len(self.order):
            most = _group_limit(self._blocks(self.order[start]))
            stop = start
            while stop < len(self.order) and self._blocks(self.order[stop]) <= most:
                stop += 1
            groups.append(self._decode_group(start, stop))
            start = stop
        return groups

    def _decode_group(self, start: int, stop: int) -> _Group:
        rows = self.order[start:stop]
        blocks = self._blocks(rows[-1])
        tables = [_padded(sequence, self._blocks(sequence), blocks) for sequence in rows]
        shape = [(s.m, len(s.prefix_pages) * self._memory.page, s.computed + 1) for s in rows]
        m, text, length = torch.tensor(shape, device=self._device).T.unsqueeze(2)
        slots = torch.arange(blocks * self._memory.page, device=self._device)
        seen = (slots < m) | ((slots >= text) & (slots < text + length))
        mask = _additive(seen)[None, :, None, :]
        return _Group(start, stop, len(rows), self._where(tables), mask)

    def _chunk_groups(self, plan: Plan) -> list[_Group]:
        groups: list[_Group] = []
        start = len(self.order)
        for chunk in plan.chunks:
            stop = start + chunk.stop - chunk.start
            groups.append(self._chunk_group(chunk, start, stop))
            start = stop
        return groups

    def _chunk_group(self, chunk: Chunk, start: int, stop: int) -> _Group:
        sequence, page = chunk.sequence, self._memory.page
        blocks = len(sequence.prefix_pages) + pages_for(chunk.stop, page)
        table = [_padded(sequence, blocks, blocks)]
        text = len(sequence.prefix_pages) * page
        slots = torch.arange(blocks * page, device=self._device)
        last = torch.arange(chunk.start, chunk.stop, device=self._device)[:, None] + text
        seen = (slots < sequence.m) | ((slots >= text) & (slots <= last))
        return _Group(start, stop, 1, self._where(table), _additive(seen)[None, None])


def _group_limit(blocks: int) -> int:
    """Most blocks of a row that shares a gather with one of `blocks`: at most a third is padding."""
    return max(blocks + 2, blocks * 3 // 2)


def _padded(sequence: Sequence, used: int, blocks: int) -> list[int]:
    own = sequence.pages[: used - len(sequence.prefix_pages)]
    return [*sequence.prefix_pages, *own, *[0] * (blocks - used)]


def _additive(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -math.inf)
