"""What the compiled attention reads of one step: which pages each token sees, and which tokens go together."""

import ctypes
from functools import partial
from itertools import groupby

import torch
from torch import Tensor

from prefix_engine.kv import PagedMemory
from prefix_engine.native.floats import floats
from prefix_engine.pages import pages_for
from prefix_engine.scheduler import Chunk, Plan
from prefix_engine.sequence import Sequence

_TOGETHER = 128  # tokens of one task at most, as in attention.c
_SHORT = 32  # positions of a prefix below which rows read it apart: less than a block of attention.c

# Positions that are read for it; first token, count, place of the prefix in the tables, m, whether of one text.
_Task = tuple[int, tuple[int, int, int, int, int]]
_whole = partial(torch.tensor, dtype=torch.int64, device="cpu")


class PagedAttention:
    """See `kernels.StepAttend`. Rows of one prefix lie side by side, so that its keys are read once for all.

    A short one, or none, is not worth that: a row alone reads all heads of its text in one go.
    """

    def __init__(self, library: ctypes.CDLL, memory: PagedMemory, plan: Plan, threads: int) -> None:
        self._library, self._memory, self._threads = library, memory, threads
        self.order = tuple(sorted(plan.decode, key=lambda sequence: sequence.prefix_pages))
        self._table_list: list[int] = []
        tokens: list[tuple[int, int, int]] = []  # slot, place of the text in the tables, its length
        tasks: list[_Task] = []
        for _, rows in groupby(self.order, key=lambda sequence: sequence.prefix_pages):
            self._decode(tuple(rows), tokens, tasks)
        for chunk in plan.chunks:
            self._chunk(chunk, tokens, tasks)
        tasks.sort(key=lambda task: -task[0])  # the longest first: the threads end together
        self._tables, self._tokens = _whole(self._table_list), _whole(tokens)
        self._tasks = _whole([task for _, task in tasks])

    def memory(self) -> tuple[int, ...]:
        """As `Memory` of forward.c, which is good as long as this object lives."""
        content = self._memory.content
        numbers = (self._tables, self._tokens, self._tasks)
        return (
            content.data_ptr(),
            self._memory.stride,
            self._memory.page,
            content.dtype == torch.bfloat16,
            *(tensor.data_ptr() for tensor in numbers),
            len(self._tasks),
        )

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Store the step's keys and values, then mix: `[n, heads, head_dim]`."""
        keys, values = self._memory.keys[layer], self._memory.values[layer]
        n, _, heads, head_dim = qkv.shape
        out = floats(n, heads, head_dim)
        self._library.attend(
            qkv.data_ptr(),
            out.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            self._memory.stride,
            heads,
            head_dim,
            self._memory.page,
            keys.dtype == torch.bfloat16,
            self._tables.data_ptr(),
            self._tokens.data_ptr(),
            n,
            self._tasks.data_ptr(),
            len(self._tasks),
            self._threads,
        )
        return out

    def _decode(
        self,
        rows: tuple[Sequence, ...],
        tokens: list[tuple[int, int, int]],
        tasks: list[_Task],
    ) -> None:
        prefix = self._table(rows[0].prefix_pages)
        together = _TOGETHER if rows[0].m >= _SHORT else 1
        for at in range(0, len(rows), together):
            some = rows[at : at + together]
            read = rows[0].m + sum(sequence.computed + 1 for sequence in some)
            tasks.append((read, (len(tokens), len(some), prefix, rows[0].m, 0)))
            for sequence in some:
                seen = sequence.computed + 1
                text = self._table(sequence.pages[: pages_for(seen, self._memory.page)])
                tokens.append((self._slot(sequence, sequence.computed), text, seen))

    def _chunk(self, chunk: Chunk, tokens: list[tuple[int, int, int]], tasks: list[_Task]) -> None:
        sequence = chunk.sequence
        prefix = self._table(sequence.prefix_pages)
        text = self._table(sequence.pages[: pages_for(chunk.stop, self._memory.page)])
        for start in range(chunk.start, chunk.stop, _TOGETHER):
            stop = min(start + _TOGETHER, chunk.stop)
            read = (stop - start) * (sequence.m + stop)
            tasks.append((read, (len(tokens), stop - start, prefix, sequence.m, 1)))
            tokens += [(self._slot(sequence, place), text, place + 1) for place in range(start, stop)]

    def _table(self, pages: tuple[int, ...]) -> int:
        place = len(self._table_list)
        self._table_list += pages
        return place

    def _slot(self, sequence: Sequence, place: int) -> int:
        page = self._memory.page
        return sequence.pages[place // page] * page + place % page
