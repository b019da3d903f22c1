"""A cache for beams that copies no more than it must: transformers' own grows by concatenation and moves all of it.

Beams of one prompt have the prompt's keys and values in common, and generate moves rows only among them: so what
stood there before the first written token is never moved. The rest lies in two buffers made once, of which a
reordering writes from one into the other. What is attended to is the same to the bit.
"""

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class Room(DynamicLayer):
    """Keys and values of one layer with room for what is written.

    Args:
        layer: filled, `[rows, heads, slots, head_dim]`; each row is repeated for its beams.
        beams: of each row.
        most: tokens that may come.
    """

    is_croppable = False

    def __init__(self, layer: DynamicLayer, beams: int, most: int) -> None:
        super().__init__()
        keys, values = layer.keys, layer.values
        assert keys is not None
        assert values is not None
        self.lazy_initialization(keys, values)
        self._shared = self._filled = keys.shape[2]
        self._now, self._next = ([_roomy(tensor, beams, most) for tensor in (keys, values)] for _ in range(2))
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Write tokens `[rows, heads, tokens, head_dim]`; all that is filled."""
        start, self._filled = self._filled, self._filled + key_states.shape[2]
        for buffer, states in zip(self._now, (key_states, value_states), strict=True):
            buffer[:, :, start : self._filled] = states
        self._show()
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was; both are of one prompt."""
        for source, target in zip(self._now, self._next, strict=True):
            written = slice(self._shared, self._filled)
            torch.index_select(source[:, :, written], 0, beam_idx, out=target[:, :, written])
        self._now, self._next = self._next, self._now
        self._show()

    def _show(self) -> None:
        self.keys, self.values = (buffer[:, :, : self._filled] for buffer in self._now)


def roomy(cache: DynamicCache, beams: int, most: int) -> DynamicCache:
    """The same with each row repeated for its beams and room for `most` tokens."""
    cache.layers = [Room(layer, beams, most) for layer in cache.layers]
    return cache


def _roomy(tensor: Tensor, beams: int, most: int) -> Tensor:
    rows, heads, slots, width = tensor.shape
    buffer = tensor.new_empty(rows * beams, heads, slots + most, width)
    buffer[:, :, :slots] = tensor.repeat_interleave(beams, 0)
    return buffer
