"""Which tokens an update reads, and at which positions: decided by seed and update alone, so a cut run goes on.

The stream is cut into runs of `block` tokens; an epoch takes each once, in an order of its own and from a
start of its own. An update of long windows has one window a run; else each run gives block / window short
ones, at positions from 0 in one half of those updates and from a random one in the other, so that all
positions are trained.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.carried_base.recipe import Recipe

_ORDER, _WINDOWS = 1, 2  # apart from 0, the order of the documents


@dataclass(frozen=True, slots=True)
class Batch:
    """The windows of one update: `targets` are the tokens that follow `ids`; all int64."""

    ids: Tensor  # [windows, length]
    targets: Tensor  # [windows, length]
    first: int  # position of the first token of each window


def batch(stream: NDArray[np.uint16], recipe: Recipe, update: int) -> Batch:
    """The windows of update `update`, from 0.

    Raises:
        ValueError: the stream is shorter than one update.
    """
    runs = (len(stream) - 1) // recipe.block - 1  # one is left for the start of the epoch
    if runs < recipe.blocks:
        raise ValueError(f"the corpus has {len(stream)} tokens to train on, an update takes {recipe.tokens}")
    a_epoch = runs // recipe.blocks
    epoch, place = divmod(update, a_epoch)
    draw = np.random.default_rng([recipe.seed, _ORDER, epoch])
    start = int(draw.integers(recipe.block))
    order = draw.permutation(runs)[place * recipe.blocks : (place + 1) * recipe.blocks]
    taken = np.stack([stream[at : at + recipe.block + 1] for at in start + order * recipe.block])
    whole = torch.from_numpy(taken.astype(np.int64))
    length, first = _windows(recipe, update)
    return Batch(whole[:, :-1].reshape(-1, length), whole[:, 1:].reshape(-1, length), first)


def _windows(recipe: Recipe, update: int) -> tuple[int, int]:
    """Length of the windows and position of their first token."""
    if recipe.long_every and update % recipe.long_every == recipe.long_every - 1:
        return recipe.block, 0
    draw = np.random.default_rng([recipe.seed, _WINDOWS, update])
    at = int(draw.integers(recipe.block - recipe.window + 1))
    return recipe.window, at if draw.random() < 0.5 else 0
