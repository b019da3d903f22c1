"""Where a prefix starts: the activations of real words, random values, or an existing version.

Words: the frozen base runs on them at positions 0..m-1 and its keys and values become the prefix (the
paper, 4.3 and `lowdata_init_train3` of its code). Text that starts at m then sees exactly what it would see
behind these words, so the first loss is the base's with the words as context.
"""

from collections.abc import Sequence
from itertools import cycle, islice

import torch
from torch import Tensor

from prefix_engine.base import Base
from prefix_engine.gpt2 import hidden_states, network_of
from prefix_engine.packed import PackedAttention, Text
from prefix_engine.prefix import LONGEST
from prefix_engine.tokenizer import Tokenizer
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.refusal import Refused

# Relevant words start slightly better than others (the paper's ablation); these fit every prompt and answer.
WORDS = "Read the text above and write the answer that follows it:"


def length_of(wishes: Hyperparameters, tokenizer: Tokenizer, positions: int, auto: int) -> int:
    """Positions of the prefix: as asked, else as many as the words that were given have tokens, else `auto`.

    Raises:
        Refused: more than a prefix or this base may have.
    """
    m, param = wishes.prefix_length, "hyperparameters.prefix_length"
    if m is None and wishes.init_text is not None:
        m, param = len(tokenizer.encode(wishes.init_text)), "hyperparameters.init_text"
    m = auto if m is None else m
    most = min(LONGEST, positions - 2)
    if m > most:
        raise Refused(
            "prefix_too_long",
            f"the prefix would have {m} positions, at most {most} are possible; ask for fewer",
            param,
        )
    return m


def word_ids(wishes: Hyperparameters, tokenizer: Tokenizer, m: int) -> list[int]:
    """The m tokens to start from: those of the words, repeated or cut."""
    return list(islice(cycle(tokenizer.encode(wishes.init_text or WORDS)), m))


def activations(base: Base, tokens: Sequence[int]) -> Tensor:
    """Keys and values of the frozen base on these tokens at positions 0..m-1: `[layers, 2, heads, m, head_dim]`."""
    m = len(tokens)
    attention = PackedAttention(base, [(Text((*tokens, 0), m), 0)], ())
    kept: list[Tensor] = []

    def attend(layer: int, qkv: Tensor) -> Tensor:
        kept.append(qkv[:, 1:].permute(1, 2, 0, 3))
        return attention(layer, qkv)

    with torch.no_grad():
        places = torch.arange(m, device=base.device)
        hidden_states(network_of(base), torch.tensor(tokens, device=base.device), places, attend)
    return torch.stack(kept)


def random_values(base: Base, m: int, generator: torch.Generator) -> Tensor:
    """Standard normal keys and values `[layers, 2, heads, m, head_dim]`, as PEFT starts."""
    config = base.config
    return torch.randn(config.layers, 2, config.heads, m, config.head_dim, generator=generator).to(
        base.device
    )
