"""Small bases with random weights, random prefixes and a sampler that says what it is told: for tests.

Needs no file and no network; a tiny base answers in microseconds and is wrong about everything.
"""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from prefix_engine.base import Base, from_transformers
from prefix_engine.prefix import Prefix
from prefix_engine.request import Delta, Event, Failed, Finished, Request, TokenInfo
from prefix_engine.sampling import Pick, RowSampler
from prefix_engine.sequence import Sequence
from prefix_engine.tokenizer import _byte_of_char

END = "<|endoftext|>"


def tiny_model(
    *,
    layers: int = 2,
    heads: int = 2,
    width: int = 16,
    positions: int = 128,
    vocab: int = 257,
    spread: float = 0.2,
    seed: int = 0,
) -> Any:
    """A transformers GPT2LMHeadModel with random weights, in eval mode.

    Args:
        layers: blocks.
        heads: heads of each.
        width: heads * head_dim.
        positions: n_positions.
        vocab: tokens; the last one is the end token.
        spread: standard deviation of the weights; 0.02 is GPT-2's, more makes logits differ more.
        seed: of the weights.
    """
    from transformers import GPT2Config, GPT2LMHeadModel  # noqa: PLC0415 - slow, and only needed here

    config = GPT2Config(
        vocab_size=vocab,
        n_positions=positions,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        initializer_range=spread,
        bos_token_id=vocab - 1,
        eos_token_id=vocab - 1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def byte_tokenizer() -> Any:
    """A `tokenizers.Tokenizer` with one token a byte (id = byte) and the end token 256."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers  # noqa: PLC0415 - see tiny_model

    backend = Tokenizer(models.BPE(vocab=_byte_of_char(), merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.add_special_tokens([AddedToken(END, special=True)])
    return backend


def tiny_base(name: str = "tiny", **shape: Any) -> Base:
    """A base over `tiny_model(**shape)` and `byte_tokenizer()`, on the CPU."""
    return base_over(tiny_model(**shape), name)


def base_over(model: Any, name: str = "tiny", device: str = "cpu") -> Base:
    """A base over a transformers model, with the byte tokenizer; on the CPU, if not told."""
    return from_transformers(name, model, SimpleNamespace(backend_tokenizer=byte_tokenizer()), device)


def random_prefix(
    base: Base, m: int, *, offset: int | None = None, seed: int = 0, spread: float = 1.0
) -> Prefix:
    """A prefix of `m` positions with normally distributed values; its text starts at m if not told."""
    config = base.config
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(config.layers, 2, config.heads, m, config.head_dim, generator=generator) * spread
    return Prefix(tensor, m if offset is None else offset, base.fingerprint)


def by_slot(tensor: Tensor) -> Tensor:
    """Keys or values of a layer in the order of their slots, as a copy: `[heads, slots, head_dim]`."""
    return tensor.transpose(0, 1).flatten(1, 2)


class TeacherForced:
    """A sampler that gives each request the tokens it was told, and keeps the logits it saw.

    Requests without orders are sampled as usual.
    """

    def __init__(self) -> None:
        self._orders: dict[int, tuple[Request, tuple[int, ...]]] = {}
        self._otherwise = RowSampler()
        self.seen: dict[int, list[Tensor]] = {}

    def expect(self, request: Request, tokens: tuple[int, ...]) -> None:
        """Give this very request these tokens."""
        self._orders[id(request)] = (request, tokens)
        self.seen[id(request)] = []

    def logits(self, request: Request) -> Tensor:
        """Logits `[steps, vocab]` that this request saw, raw, on the CPU."""
        return torch.stack(self.seen[id(request)]).cpu()

    def pick(self, logits: Tensor, sequences: list[Sequence]) -> list[Pick]:
        """See `sampling.Sampler`."""
        raw = logits.clone()
        picks = self._otherwise.pick(logits, sequences)
        for i, sequence in enumerate(sequences):
            key = id(sequence.request)
            if key in self._orders:
                self.seen[key].append(raw[i].clone())
                picks[i] = Pick(self._orders[key][1][len(sequence.generated)], picks[i].score)
        return picks

    def forget(self, sequence: Sequence) -> None:
        """See `sampling.Sampler`."""
        self._otherwise.forget(sequence)


class Collected:
    """A sink that keeps all events; `wait` until the last one."""

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()
        self._on_event = on_event

    def __call__(self, event: Event) -> None:
        """Take one event."""
        self.events.append(event)
        if self._on_event is not None:
            self._on_event(event)
        if not isinstance(event, Delta):
            self._ended.set()

    def wait(self, timeout_s: float = 30.0) -> Finished | Failed:
        """The last event, once it is there.

        Raises:
            TimeoutError: it did not come in time.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError("the generation did not end")
        last = self.events[-1]
        if isinstance(last, Delta):
            raise RuntimeError("a Delta came after the end")  # noqa: TRY004 - an order broken, not a type
        return last

    @property
    def ended(self) -> bool:
        """Whether the last event came."""
        return self._ended.is_set()

    @property
    def text(self) -> str:
        """The text so far."""
        return "".join(event.text for event in self.events if isinstance(event, Delta))

    @property
    def infos(self) -> tuple[TokenInfo, ...]:
        """The tokens so far."""
        return tuple(info for event in self.events if isinstance(event, Delta) for info in event.tokens)

    @property
    def tokens(self) -> tuple[int, ...]:
        """Ids of the tokens so far."""
        return tuple(info.id for info in self.infos)
