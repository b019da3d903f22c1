"""A decode step of fixed shape at fixed addresses, as a CUDA graph needs it; every device can compute it.

Rows and blocks are padded up to a bucket. A padded row reads page 0, which is zero, and writes into the
memory's scrap page, which no block table names: nobody sees it, and page 0 stays zero.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence as Ordered
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from prefix_engine.gpt2 import Network, hidden_states
from prefix_engine.kv import PagedMemory
from prefix_engine.pages import pages_for
from prefix_engine.sequence import Sequence

_FIELDS = 6  # numbers a row beside its block table
_FEWEST_BLOCKS = 4


@dataclass(frozen=True, slots=True)
class Bucket:
    """A shape: rows, and blocks of each row's table."""

    rows: int
    blocks: int

    @property
    def numbers(self) -> int:
        """Integers that describe a step of this shape."""
        return self.rows * (_FIELDS + self.blocks)


class Buckets:
    """The shapes that there are: rows doubled from 1, blocks from 4 by steps of a half and a third."""

    def __init__(self, rows: int, blocks: int) -> None:
        self._rows = _sizes(rows, [2**i for i in range(rows.bit_length())])
        few = range(blocks.bit_length())
        self._blocks = _sizes(
            blocks, [n << i for i in few for n in (_FEWEST_BLOCKS, _FEWEST_BLOCKS * 3 // 2)]
        )
        self.largest = Bucket(rows, blocks)

    def holding(self, rows: int, blocks: int) -> Bucket:
        """The smallest that holds so many."""
        return Bucket(
            self._rows[bisect_left(self._rows, rows)], self._blocks[bisect_left(self._blocks, blocks)]
        )


def blocks_of(sequence: Sequence, page: int) -> int:
    """Blocks that the next token of a row sees: its prefix, its text and the token itself."""
    return len(sequence.prefix_pages) + pages_for(sequence.computed + 1, page)


@dataclass(frozen=True, slots=True)
class Inputs:
    """One step as tensors: a view of a flat one `[bucket.numbers]`, int64.

    Attributes:
        tokens: the token of each row, `[rows]`, as all but `tables`.
        places: its position in the base.
        slots: where its keys and values go.
        m: positions of its prefix.
        text: where its text begins among the slots of its blocks.
        length: text tokens that it sees, itself among them.
        tables: pages `[rows, blocks]`.
    """

    tokens: Tensor
    places: Tensor
    slots: Tensor
    m: Tensor
    text: Tensor
    length: Tensor
    tables: Tensor

    @classmethod
    def of(cls, flat: Tensor, bucket: Bucket) -> Self:
        """The view."""
        split = _FIELDS * bucket.rows
        tokens, places, slots, m, text, length = flat[:split].view(_FIELDS, bucket.rows).unbind(0)
        tables = flat[split : bucket.numbers].view(bucket.rows, bucket.blocks)
        return cls(tokens, places, slots, m, text, length, tables)


def numbers_of(sequences: Ordered[Sequence], bucket: Bucket, memory: PagedMemory) -> list[int]:
    """What `Inputs.of` reads, for one more token of each of these rows."""
    page = memory.page
    rows = [_row(sequence, page) for sequence in sequences]
    rows += [(0, 0, memory.scrap * page, 0, 0, 1)] * (bucket.rows - len(rows))
    numbers = [number for field in zip(*rows, strict=True) for number in field]
    for sequence in sequences:
        own = sequence.pages[: pages_for(sequence.computed + 1, page)]
        unused = bucket.blocks - len(sequence.prefix_pages) - len(own)
        numbers += (*sequence.prefix_pages, *own, *(0,) * unused)
    numbers += [0] * (bucket.numbers - len(numbers))
    return numbers


def _row(sequence: Sequence, page: int) -> tuple[int, ...]:
    at = sequence.computed
    slot = sequence.pages[at // page] * page + at % page
    text = len(sequence.prefix_pages) * page
    return sequence.token(at), sequence.position_offset + at, slot, sequence.m, text, at + 1


def decode_step(network: Network, memory: PagedMemory, inputs: Inputs) -> Tensor:
    """Logits `[rows, vocab]` of the next tokens; the rows' keys and values are in memory afterwards.

    Asks nothing of the host and takes nothing from it, so that it can be recorded, and is the same however
    often it runs.
    """
    attend = FixedAttention(memory, inputs)
    return network.head(hidden_states(network, inputs.tokens, inputs.places, attend))


class FixedAttention:
    """Call it with (layer, qkv `[rows, 3, heads, head_dim]`); see `gpt2.Attend`.

    Two products and a softmax rather than SDPA: a row has one query, so there is nothing to fuse, and these
    operations mean the same on every device, where SDPA chooses a kernel by device, mask and format.
    """

    def __init__(self, memory: PagedMemory, inputs: Inputs) -> None:
        self._memory, self._places = memory, memory.places(inputs.slots)
        heads, _, head_dim = memory.content.shape[3:]
        device = inputs.tables.device
        self._where = memory.blocks(inputs.tables)
        self._shape = (heads, inputs.tables.shape[0], -1, head_dim)
        at = torch.arange(inputs.tables.shape[1] * memory.page, device=device)
        m, text, length = (field.unsqueeze(1) for field in (inputs.m, inputs.text, inputs.length))
        seen = (at < m) | ((at >= text) & (at < text + length))
        self._hidden = ~seen[None, :, None, :]
        self._scale = 1 / math.sqrt(head_dim)

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Store the step's keys and values, then mix: `[rows, heads, head_dim]`."""
        query, key, value = qkv.unbind(1)
        self._memory.write(layer, self._places, key, value)
        q = (query * self._scale).transpose(0, 1).unsqueeze(2)
        scores = q @ self._gathered(layer, 0).transpose(2, 3)
        shares = scores.masked_fill_(self._hidden, -math.inf).softmax(3)
        return (shares @ self._gathered(layer, 1)).squeeze(2).transpose(0, 1)

    def _gathered(self, layer: int, part: int) -> Tensor:
        """`[heads, rows, slots, head_dim]` of the tables, in float32; keys (part 0) or values (1)."""
        rows = self._memory.rows(layer, part)
        return rows.index_select(0, self._where).view(self._shape).float()


def _sizes(most: int, wanted: list[int]) -> list[int]:
    return sorted({size for size in wanted if size < most} | {most})
