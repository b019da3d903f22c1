"""What may be asked of the engine and what it answers, as plain values. Knows no tensors and no threads."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

MOST_LOGPROBS = 5
MOST_STOP = 256  # characters: what may become a stop string is looked for in every row's text at every step
SEED_BITS = 63
_LARGEST = 1e30  # that may be added to a logit: more, with the sum of many, is not finite in float32


_WRONG = {"prompt": "empty", "stop": f"a stop string has 1 to {MOST_STOP} characters"}


class RequestError(ValueError):
    """A request that no engine could serve; `param` names the field to mend."""

    def __init__(self, param: str, message: str) -> None:
        super().__init__(f"{param}: {message}")
        self.param = param


class QueueFullError(Exception):
    """As many requests or tokens wait as may; the caller should try again later."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen, with the meaning that OpenAI's API gives these words.

    Attributes:
        temperature: 0 is greedy; else logits are divided by it.
        top_k: only the k best tokens are drawn from; 0 means all.
        top_p: only the smallest set of best tokens with at least this probability, after top_k.
        seed: of the row's own generator; None lets the engine choose one.
        min_tokens: tokens before which neither the end token nor a stop string ends the row.
        presence_penalty: taken off the logit of every token generated before.
        frequency_penalty: the same, times how often it was generated.
        logit_bias: token id to what is added to its logit.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_tokens: int = 0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        wrong = {
            "temperature": not (math.isfinite(self.temperature) and self.temperature >= 0),
            "top_k": self.top_k < 0,
            "top_p": not 0 < self.top_p <= 1,
            "seed": self.seed is not None and not -(1 << SEED_BITS) <= self.seed < 1 << SEED_BITS,
            "min_tokens": self.min_tokens < 0,
            "presence_penalty": not abs(self.presence_penalty) <= _LARGEST,
            "frequency_penalty": not abs(self.frequency_penalty) <= _LARGEST,
            "logit_bias": not all(abs(amount) <= _LARGEST for amount in self.logit_bias.values()),
        }
        for name, bad in wrong.items():
            if bad:
                raise RequestError(name, f"out of range: {getattr(self, name)}")

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before the choice."""
        penalised = self.presence_penalty != 0 or self.frequency_penalty != 0
        return penalised or bool(self.logit_bias) or self.min_tokens > 0


@dataclass(frozen=True, slots=True)
class Request:
    """One text to continue.

    Attributes:
        prompt: token ids, at least one, used exactly as given.
        max_tokens: most tokens to generate; 0 with `echo` only scores the prompt.
        end_id: token that ends the text, not part of it; None for none.
        prefix_id: what the engine's loader is asked for; None is the base model.
        share: key of the fair share; requests of one key are served in order, but for those
            that wait for a prompt which another computes.
        reuse: ids of whoever it is from, which `Engine.forget` takes. Requests with the same ids and the same
            prefix may use each other's keys and values of equal beginnings, and notice it by the time that
            they take; None uses none and leaves none.
        stop: strings that end the text and are never emitted, of `MOST_STOP` characters at most.
        sampling: how tokens are chosen.
        logprobs: None, or how many best tokens to report beside the chosen one's log probability (0..5).
        echo: give the prompt back, with its log probabilities if `logprobs` is set (the first is None).
        deadline: on `time.monotonic`'s scale; after it the request fails with `deadline`.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    end_id: int | None
    prefix_id: str | None = None
    share: str = ""
    reuse: tuple[str, ...] | None = None
    stop: tuple[str, ...] = ()
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    echo: bool = False
    deadline: float | None = None

    def __post_init__(self) -> None:
        wrong = {
            "prompt": not self.prompt,
            "max_tokens": self.max_tokens < 0,
            "stop": not all(0 < len(stop) <= MOST_STOP for stop in self.stop),
            "logprobs": self.logprobs is not None and not 0 <= self.logprobs <= MOST_LOGPROBS,
            "deadline": self.deadline is not None and math.isnan(self.deadline),
        }
        for name, bad in wrong.items():
            if bad:
                raise RequestError(name, _WRONG.get(name, "out of range"))

    @property
    def positions(self) -> int:
        """Text positions that the row may use of the base's n_positions."""
        return len(self.prompt) + self.max_tokens

    def check_vocabulary(self, vocab: int) -> None:
        """Refuse ids that a base of `vocab` tokens does not have, with RequestError."""
        end = () if self.end_id is None else (self.end_id,)
        bias = tuple(self.sampling.logit_bias)
        for name, ids in (("prompt", self.prompt), ("end_id", end), ("logit_bias", bias)):
            if ids and not (min(ids) >= 0 and max(ids) < vocab):
                raise RequestError(name, f"token ids of this base are 0..{vocab - 1}")


FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class TokenInfo:
    r"""One token of the text.

    `text` is the token's own text. A token that is no whole UTF-8 by itself reads `bytes:\xe2\x80`, as in
    OpenAI's API; special tokens read as empty. A token cut by a stop string carries only the part before it.
    `top` holds (id, text, logprob), best first, and last the token itself where it is none of the best; special
    tokens are there by name, so that no two read alike.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of the answer; `text` may be empty while a character is incomplete."""

    text: str
    tokens: tuple[TokenInfo, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The answer is whole. Tokens are counted as computed, the end token and a stop string's included.

    `end_logprob` is the end token's, which no Delta shows; None if none ended the text or none was asked for.
    `cached_tokens` of the prompt's were not computed again.
    """

    reason: FinishReason
    prompt_tokens: int
    completion_tokens: int
    end_logprob: float | None = None
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Failed:
    """No more will come.

    `code` is one of revoked, deadline, non_finite, load_failed, context, draining, cancelled,
    engine_stopped, internal, or what the loader refused it with (corrupt, base_mismatch, ...).
    """

    code: str
    message: str


Event = Delta | Finished | Failed
