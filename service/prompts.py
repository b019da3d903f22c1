"""A completion's body to requests of the engine: prompts to tokens, defaults, limits of the context."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefix_engine import Base, Request, Sampling
from prefix_engine.template import Template
from prefix_store.version_rows import Resolved
from service.errors import FINAL, ApiError
from service.fields import MOST_ROWS
from service.schemas import CompletionBody

_DEFAULT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Plan:
    """A completion, ready for the engine.

    Attributes:
        body: as it was asked.
        resolved: the version that answers; None for the base model.
        requests: `prompts x best_of` rows, those of one prompt side by side.
        each: rows of one prompt.
        prompt_tokens: of all prompts, each counted once.
    """

    body: CompletionBody
    resolved: Resolved | None
    requests: tuple[Request, ...]
    each: int
    prompt_tokens: int

    @property
    def generates(self) -> int:
        """Most tokens that its rows generate."""
        return sum(request.max_tokens for request in self.requests)

    @property
    def positions(self) -> int:
        """Positions of its rows' texts: what they hold of the queue, and most of it in memory."""
        return sum(request.positions for request in self.requests)


def plan(
    base: Base,
    body: CompletionBody,
    resolved: Resolved | None,
    share: str,
    reuse: tuple[str, ...],
    deadline: float,
) -> Plan:
    """Read a body.

    Args:
        base: the model.
        body: what was asked.
        resolved: the version that the name means, or None for the base model.
        share: whose fair share it is.
        reuse: for whom its prompts may be reused.
        deadline: on `time.monotonic`'s scale.

    Raises:
        ApiError: 400, a prompt or setting that cannot be served; 409, a version of another base.
        RequestError: a value that the engine refuses.
    """
    if resolved is not None and resolved.base_fingerprint != base.fingerprint:
        text = f"{resolved.full_name} was trained on another base model; train it again on {base.name}"
        raise ApiError(409, "base_mismatch", text, "model", headers=FINAL)
    template = None if resolved is None else Template.from_json(resolved.template)
    given = _given(body)
    each = max(body.best_of or 1, body.n or 1)
    if len(given) * each > MOST_ROWS:
        text = f"{len(given)} prompts x {each} are more than {MOST_ROWS} rows; send less at once"
        raise ApiError(400, "invalid_value", text, "n" if each > 1 else "prompt")
    for one in given:
        _check_size(base, one)
    most = _DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
    offset = 0 if resolved is None else resolved.position_offset
    end_id = base.config.end_id if template is None else template.end_id
    bias = _bias(body.logit_bias)
    requests, prompt_tokens = [], 0
    for i, one in enumerate(given):  # each is checked before the next is encoded, which is what costs
        prompt = _text(base, one, template) if isinstance(one, str) else _ids(base, one)
        _check(base, body, prompt, most, offset)
        prompt_tokens += len(prompt)
        requests += [
            _request(body, prompt, most, end_id, resolved, share, reuse, deadline, i * each + j, each, bias)
            for j in range(each)
        ]
    return Plan(body, resolved, tuple(requests), each, prompt_tokens)


def _given(body: CompletionBody) -> Sequence[str | list[int]]:
    given = body.prompt
    if given is None or isinstance(given, str):
        return [given or ""]
    if not given:
        raise ApiError(400, "invalid_value", "prompt: an empty list; give a text or token ids", "prompt")
    several: Sequence[str | list[int]] = [given] if isinstance(given[0], int) else given
    return several


def _check_size(base: Base, prompt: str | list[int]) -> None:
    """Refuse, before it is encoded, what cannot fit: encoding it would cost more than answering others."""
    most = base.config.positions
    size = len(prompt.encode()) // max(1, base.tokenizer.longest) if isinstance(prompt, str) else len(prompt)
    if size > most:
        text = f"a prompt of at least {size} tokens is more than the context of {most}; shorten the prompt"
        raise ApiError(400, "context_length_exceeded", text, "prompt")


def _text(base: Base, text: str, template: Template | None) -> tuple[int, ...]:
    if template is not None:
        return tuple(template.prompt_ids(base.tokenizer, text))
    # GPT-2 knows no beginning but the end of the text before.
    return tuple(base.tokenizer.encode(text)) or (base.config.end_id,)


def _ids(base: Base, ids: list[int]) -> tuple[int, ...]:
    tokens = tuple(ids)
    if not tokens:
        raise ApiError(
            400, "invalid_value", "prompt: an empty list of token ids; give at least one", "prompt"
        )
    if max(tokens) >= base.config.vocab:
        text = f"prompt: token ids of {base.name} are 0..{base.config.vocab - 1}"
        raise ApiError(400, "invalid_value", text, "prompt")
    return tokens


def _check(base: Base, body: CompletionBody, prompt: tuple[int, ...], most: int, offset: int) -> None:
    context = base.config.positions
    if offset + len(prompt) + most > context:
        counted = f"{len(prompt)} tokens of prompt + {most} max_tokens"
        counted += f" + {offset} positions of the prefix" if offset else ""
        text = f"{counted} are more than the context of {context}; shorten the prompt or lower max_tokens"
        param = "prompt" if offset + len(prompt) >= context else "max_tokens"
        raise ApiError(400, "context_length_exceeded", text, param)
    if most == 0 and not body.echo:
        raise ApiError(400, "invalid_value", "max_tokens: 0 answers nothing without echo: true", "max_tokens")


def _request(
    body: CompletionBody,
    prompt: tuple[int, ...],
    most: int,
    end_id: int,
    resolved: Resolved | None,
    share: str,
    reuse: tuple[str, ...],
    deadline: float,
    row: int,
    each: int,
    bias: dict[int, float],
) -> Request:
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    logprobs = body.logprobs
    if logprobs is None and each > (body.n or 1):
        logprobs = 0  # best_of ranks by them
    return Request(
        prompt=prompt,
        max_tokens=most,
        end_id=end_id,
        prefix_id=None if resolved is None else resolved.version_id,
        share=share,
        reuse=reuse,
        stop=stop,
        sampling=_sampling(body, row, bias),
        logprobs=logprobs,
        echo=bool(body.echo),
        deadline=deadline,
    )


def _sampling(body: CompletionBody, row: int, bias: dict[int, float]) -> Sampling:
    """Rows of one request draw differently: a given seed counts on with each."""
    seed = None if body.seed is None else (body.seed + row) % (1 << 63)
    return Sampling(
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k or 0,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=seed,
        min_tokens=body.min_tokens or 0,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=bias,
    )


def _bias(given: dict[str, float] | None) -> dict[int, float]:
    if not all(token.isascii() and token.isdigit() and len(token) < 10 for token in given or ()):
        text = 'logit_bias: keys are token ids, such as {"50256": -100}'
        raise ApiError(400, "invalid_value", text, "logit_bias")
    return {int(token): value for token, value in (given or {}).items()}
