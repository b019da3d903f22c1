"""What the engine's rows said, in the shapes of OpenAI's completions, whole and in pieces."""

import codecs
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict

from prefix_engine import Delta, Failed, Finished, TokenInfo
from service.prompts import Plan

Json = dict[str, Any]

_SHOWN_BYTES = re.compile(r"bytes:(\\x[0-9a-f]{2})+")


class Logprobs(TypedDict):
    """Columns by token; `text_offset` counts characters."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Choice(TypedDict):
    """One row of an answer."""

    index: int
    text: str
    logprobs: Logprobs | None
    finish_reason: Literal["stop", "length"]


class CachedTokens(TypedDict):
    """Prompt tokens that were not computed again."""

    cached_tokens: int


class CompletionUsage(TypedDict):
    """Tokens of an answer."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class Completion(TypedDict):
    """OpenAI's completion, with the version that answered."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: CompletionUsage
    system_fingerprint: str
    prefix_version: str | None


@dataclass(slots=True)
class Row:
    """One row of an answer as far as it has come; the first `echoed` tokens are the prompt's."""

    echoed: int = 0
    text: str = ""
    tokens: list[TokenInfo] = field(default_factory=list)
    finished: Finished | None = None
    offsets: list[int] = field(default_factory=list)
    _decoded: int = 0
    _decoder: codecs.IncrementalDecoder = field(
        default_factory=lambda: codecs.getincrementaldecoder("utf-8")(errors="replace")
    )

    def add(self, delta: Delta) -> None:
        """Append a piece."""
        self.text += delta.text
        self.tokens += delta.tokens
        for token in delta.tokens:  # a character may begin in one token and end in another
            self.offsets.append(self._decoded)
            self._decoded += len(self._decoder.decode(_bytes_of(token)))

    @property
    def mean_logprob(self) -> float:
        """How likely its generated tokens were, on average, the end token among them."""
        scores = [token.logprob for token in self.tokens[self.echoed :] if token.logprob is not None]
        if self.finished is not None and self.finished.end_logprob is not None:
            scores.append(self.finished.end_logprob)
        return sum(scores) / len(scores) if scores else -math.inf


class Answer:
    """The answer to one plan, fed with events.

    Args:
        plan: what was asked.
        model: the name to show.
        answer_id: of the completion.
        created: Unix time, seconds.
        fingerprint: of the base, for `system_fingerprint`.
    """

    def __init__(self, plan: Plan, model: str, answer_id: str, created: int, fingerprint: str) -> None:
        self.plan = plan
        self.rows = [Row(len(request.prompt) if request.echo else 0) for request in plan.requests]
        version = None if plan.resolved is None else plan.resolved.full_name
        self._head = {"id": answer_id, "object": "text_completion", "created": created, "model": model}
        self._tail = {"system_fingerprint": f"fp_{fingerprint[:12]}", "prefix_version": version}

    def whole(self) -> Json:
        """The answer, when every row has finished."""
        choices = []
        for index, row in enumerate(self._chosen()):
            reason = row.finished.reason if row.finished is not None else None
            choices.append(self._choice(index, row.text, row, 0, reason))
        return {**self._head, "choices": choices, "usage": self.usage(), **self._tail}

    def pieces(self, events: Sequence[tuple[int, Delta | Finished]]) -> list[Json]:
        """Chunks of the stream for some events: at most one with text for each row."""
        by_row: dict[int, list[Delta | Finished]] = {}
        for index, event in events:
            by_row.setdefault(index, []).append(event)
        chunks = []
        for index, mine in by_row.items():
            deltas = [event for event in mine if isinstance(event, Delta)]
            row = self.rows[index]
            start, told = len(row.text), len(row.tokens)
            for delta in deltas:
                row.add(delta)
            row.finished = next((event for event in mine if isinstance(event, Finished)), None)
            text = row.text[start:]
            if text or len(row.tokens) > told or row.finished:
                reason = row.finished.reason if row.finished is not None else None
                chunks.append(self._chunk([self._choice(index, text, row, told, reason)]))
        return chunks

    def last_piece(self) -> Json | None:
        """The chunk that carries the usage, if it was asked for."""
        options = self.plan.body.stream_options
        if options is None or not options.include_usage:
            return None
        return {**self._chunk([]), "usage": self.usage()}

    def usage(self) -> Json:
        """Tokens so far; positions of a prefix are no tokens."""
        prompt, completion = self.counts()
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": self._cached()},
        }

    def counts(self) -> tuple[int, int]:
        """Prompt and completion tokens so far; rows that broke off count what they gave out."""
        generated = 0
        for row in self.rows:
            if row.finished is not None:
                generated += row.finished.completion_tokens
            else:
                generated += max(0, len(row.tokens) - row.echoed)
        return self.plan.prompt_tokens, generated

    def _cached(self) -> int:
        """Prompt tokens that no row computed, of the rows that have finished."""
        found = [0 if row.finished is None else row.finished.cached_tokens for row in self.rows]
        each = self.plan.each  # rows of one prompt, whose tokens count once
        return sum(min(found[start : start + each]) for start in range(0, len(found), each))

    def _chosen(self) -> list[Row]:
        each, wanted = self.plan.each, self.plan.body.n or 1
        chosen: list[Row] = []
        for start in range(0, len(self.rows), each):
            rows = self.rows[start : start + each]
            if each > wanted:
                rows = sorted(rows, key=lambda row: -row.mean_logprob)[:wanted]
            chosen += rows
        return chosen

    def _chunk(self, choices: list[Json]) -> Json:
        chunk = {**self._head, "choices": choices, **self._tail}
        options = self.plan.body.stream_options
        return {**chunk, "usage": None} if options is not None and options.include_usage else chunk

    def _choice(self, index: int, text: str, row: Row, told: int, reason: str | None) -> Json:
        asked = self.plan.body.logprobs
        logprobs = None if asked is None else _logprobs(row.tokens[told:], row.offsets[told:], asked)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}


def _bytes_of(token: TokenInfo) -> bytes:
    """The bytes that a token stands for, from the form in which it is shown."""
    if _SHOWN_BYTES.fullmatch(token.text):
        return bytes.fromhex(token.text.removeprefix("bytes:").replace("\\x", ""))
    return token.text.encode()


def _logprobs(tokens: Sequence[TokenInfo], offsets: Sequence[int], asked: int) -> Json:
    """OpenAI's columns; `text_offset` counts characters of the answer's text."""
    top = [
        {text: logprob for _, text, logprob in token.top} if token.logprob is not None else None
        for token in tokens
    ]
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": top if asked else None,
        "text_offset": list(offsets),
    }


def failure(events: Sequence[tuple[int, Delta | Finished | Failed]]) -> Failed | None:
    """The first failure among some events."""
    return next((event for _, event in events if isinstance(event, Failed)), None)
