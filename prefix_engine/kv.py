"""The memory of keys and values: tensors cut into pages, for rows and resident prefixes alike.

Page 0 belongs to nobody and stays zero: block tables are padded with it. The last page is scrap: rows that
only fill up a fixed shape write there, and no block table names it. A page is zeroed when its
holder gives it back, so nothing of a deleted prefix or an ended text stays, and a NaN cannot reach the
next holder through a masked slot (a weight of zero times NaN is NaN).
"""

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from prefix_engine.base import BaseConfig
from prefix_engine.cuda import sent
from prefix_engine.pages import PageAllocator, pages_for
from prefix_engine.prefix import Prefix

# Fills the pages with these numbers, of `page` positions each, with zeros in every memory
# `[heads, pages * page, head_dim]`.
Erase = Callable[[Items[Tensor], Items[int], int], None]


def erase_pages(memories: Items[Tensor], pages: Items[int], page: int) -> None:
    """See `Erase`; by torch, on any device."""
    where = torch.tensor(pages, device=memories[0].device)
    for memory in memories:
        memory.view(memory.shape[0], -1, page * memory.shape[2]).index_fill_(1, where, 0.0)


class PagedMemory:
    """Keys and values of all layers, each `[heads, pages * page, head_dim]`, float32 or bfloat16.

    `row_pages` are for the texts of running rows, `prefix_pages` for resident prefixes; both index the
    same tensors, so one block table reaches them.
    """

    def __init__(
        self,
        base: BaseConfig,
        device: torch.device,
        page: int,
        kv_bytes: int,
        pool_bytes: int,
        most_rows: int | None = None,
        dtype: torch.dtype = torch.float32,
        erase: Erase = erase_pages,
    ) -> None:
        self.page = page
        self._erase = erase
        self.page_bytes = base.layers * 2 * base.heads * base.head_dim * page * dtype.itemsize
        rows, prefixes = max(1, kv_bytes // self.page_bytes), max(1, pool_bytes // self.page_bytes)
        if most_rows is not None:  # more than all rows at full length could never be used
            rows = min(rows, most_rows * pages_for(base.positions, page))
        self.row_pages = PageAllocator(range(1, 1 + rows))
        self.prefix_pages = PageAllocator(range(1 + rows, 1 + rows + prefixes))
        self.scrap = 1 + rows + prefixes
        shape = (base.heads, (self.scrap + 1) * page, base.head_dim)
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(base.layers)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(base.layers)]

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value `[n, heads, head_dim]` at `slots` `[n]`."""
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(1, slots, key.transpose(0, 1).to(keys.dtype))
        values.index_copy_(1, slots, value.transpose(0, 1).to(values.dtype))

    def place(self, prefix: Prefix) -> tuple[int, ...] | None:
        """Copy a prefix into free pages, in one transfer to the device; None if there are not enough."""
        pages = self.prefix_pages.take(pages_for(prefix.m, self.page))
        if pages is None:
            return None
        device = self.keys[0].device
        first = torch.tensor(pages, device=device).unsqueeze(1) * self.page
        slots = (first + torch.arange(self.page, device=device)).view(-1)[: prefix.m]
        for layer, (key, value) in enumerate(sent(prefix.tensor, device).transpose(2, 3)):
            self.write(layer, slots, key, value)
        return pages

    def zero(self, pages: Iterable[int]) -> None:
        """Erase the content of pages."""
        if numbers := tuple(pages):
            self._erase((*self.keys, *self.values), numbers, self.page)

    def remove(self, pages: tuple[int, ...]) -> None:
        """Erase a prefix and free its pages."""
        self.zero(pages)
        self.prefix_pages.give_back(pages)
