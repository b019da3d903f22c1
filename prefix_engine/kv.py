"""The memory of keys and values: one tensor cut into pages, for rows and resident prefixes alike.

A page is one run of memory with the keys and values of all layers and heads, so that what rows use lies
dense, in few huge pages of the system. Page 0 belongs to nobody and stays zero: block tables are padded with
it. The last page is scrap: rows that only fill up a fixed shape write there, and no block table names it. A
page is zeroed when its holder gives it back, so nothing of a deleted prefix or an ended text stays, and a NaN
cannot reach the next holder through a masked slot (a weight of zero times NaN is NaN).
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from prefix_engine import huge
from prefix_engine.base import BaseConfig
from prefix_engine.cuda import Courier
from prefix_engine.pages import PageAllocator, pages_for
from prefix_engine.prefix import Prefix


class PagedMemory:
    """Keys and values, float32 or bfloat16; slot s is position `s % page` of page `s // page`.

    `row_pages` are for the texts of running rows, `prefix_pages` for resident prefixes; both index the
    same tensor, so one block table reaches them.

    Attributes:
        content: `[pages, layers, 2, heads, page, head_dim]`.
        keys: of each layer, a view `[pages, heads, page, head_dim]`.
        values: the same.
        stride: rows of `[page, head_dim]` in one page.
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
    ) -> None:
        self.page = page
        self.page_bytes = base.layers * 2 * base.heads * base.head_dim * page * dtype.itemsize
        rows, prefixes = max(1, kv_bytes // self.page_bytes), max(1, pool_bytes // self.page_bytes)
        if most_rows is not None:  # more than all at full length could never be used
            rows = min(rows, most_rows * pages_for(base.positions, page))
        self.row_pages = PageAllocator(range(1, 1 + rows))
        self.prefix_pages = PageAllocator(range(1 + rows, 1 + rows + prefixes))
        self.scrap = 1 + rows + prefixes
        shape = (self.scrap + 1, base.layers, 2, base.heads, page, base.head_dim)
        on_cpu = device.type == "cpu"
        self.content = huge.zeros(shape, dtype) if on_cpu else torch.zeros(shape, device=device, dtype=dtype)
        self.keys = [self.content[:, layer, 0] for layer in range(base.layers)]
        self.values = [self.content[:, layer, 1] for layer in range(base.layers)]
        self.stride = base.layers * 2 * base.heads
        self._courier = Courier(device)

    def blocks(self, tables: Tensor) -> Tensor:
        """Which rows of `rows` the pages `[rows, blocks]` are: `[heads * rows * blocks]`."""
        heads = torch.arange(self.content.shape[3], device=tables.device).view(-1, 1)
        return (tables.view(1, -1) * self.stride + heads).view(-1)

    def rows(self, layer: int, part: int) -> Tensor:
        """Keys (part 0) or values (1) of a layer as `blocks` numbers them: `[*, page * head_dim]`."""
        whole = self.content.view(-1, self.page * self.content.shape[5])
        return whole[(2 * layer + part) * self.content.shape[3] :]

    def places(self, slots: Tensor) -> Tensor:
        """Where `write` puts what belongs to `slots` `[n]`: `[n * heads]`."""
        heads = torch.arange(self.content.shape[3], device=slots.device)
        page = slots // self.page * self.stride
        return ((page[:, None] + heads) * self.page + (slots % self.page)[:, None]).view(-1)

    def write(self, layer: int, places: Tensor, key: Tensor, value: Tensor) -> None:
        """Store key and value `[n, heads, head_dim]` of the slots that `places` was made of."""
        head_dim = self.content.shape[5]
        for part, numbers in enumerate((key, value)):
            rows = self.rows(layer, part).view(-1, head_dim)
            rows.index_copy_(0, places, numbers.reshape(-1, head_dim).to(rows.dtype))

    def place(self, prefix: Prefix) -> tuple[int, ...] | None:
        """Copy a prefix into free pages, in one transfer to the device; None if there are not enough.

        If it raises, no page is held.
        """
        pages = self.prefix_pages.take(pages_for(prefix.m, self.page))
        if pages is None:
            return None
        try:
            with self._courier.lent(prefix.tensor) as there:
                for number, page in enumerate(pages):
                    part = there[:, :, :, number * self.page : (number + 1) * self.page]
                    self.content[page, :, :, :, : part.shape[3]].copy_(part)
        except BaseException:  # out of memory on the device, for one
            self.remove(pages)
            raise
        return pages

    def prepare(self, count: int) -> None:
        """Make the memory of the next `count` free prefix pages be there; from any thread, changes no content."""
        if self.content.device.type == "cpu":
            for page in self.prefix_pages.next(count):
                huge.populate(self.content[page])

    def zero(self, pages: Iterable[int]) -> None:
        """Erase the content of pages."""
        for page in pages:
            self.content[page].zero_()

    def settle(self) -> None:
        """Wait until what was zeroed is zero, and zero what is left of the prefix that was placed last elsewhere."""
        self._courier.settle()

    def remove(self, pages: tuple[int, ...]) -> None:
        """Erase a prefix and free its pages."""
        self.zero(pages)
        self.prefix_pages.give_back(pages)
