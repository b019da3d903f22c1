"""Load on one service: completions sent at given moments or so many at a time, and when their pieces came.

Knows the wire and the clock; refuses to know what is asked (`bench_asks`) and what the times mean
(`bench_report`). Of a request that was due but sent late the time still counts from when it was due, so
that a service that holds up its clients does not hide it.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from service.cli.connection import CONNECT_SECONDS

ANSWER_SECONDS = 900.0  # longer than the service's own deadline


@dataclass(frozen=True, slots=True)
class Ask:
    """One completion to send.

    Attributes:
        model: name of the base, a prefix or a version.
        prompt: token ids.
        output: most tokens of the answer.
        due: seconds after the start; None is sent as soon as another has ended.
        api_key: None sends none.
        label: whose it is, for who reads the outcomes.
    """

    model: str
    prompt: tuple[int, ...]
    output: int
    due: float | None = None
    api_key: str | None = None
    label: str = ""


@dataclass(slots=True)
class Outcome:
    """What became of one ask; seconds count from when it was due, `began` from the start of the load.

    Attributes:
        error: status and code, or what went wrong with the connection; None if it was answered whole.
        pieces: when each piece of the answer came, the last one first told its end.
        tokens: that the answer had, by the service's own count; 0 of a broken one.
        lag: how late it was sent.
        retry_after: seconds to wait before the next request, as a refusal said.
    """

    ask: Ask
    began: float
    lag: float = 0.0
    retry_after: float = 0.0
    error: str | None = None
    pieces: list[float] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def first(self) -> float:
        """Time to the first token."""
        return self.pieces[0]

    @property
    def gaps(self) -> list[float]:
        """Times between tokens as the client sees them; the piece that tells the end is no token."""
        return [b - a for a, b in zip(self.pieces, self.pieces[1:-1], strict=False)]

    @property
    def per_token(self) -> float | None:
        """Mean time between tokens; None of an answer with one."""
        return (self.pieces[-1] - self.pieces[0]) / (self.tokens - 1) if self.tokens > 1 else None


def run(url: str, asks: Iterator[Ask], **bounds: Any) -> tuple[list[Outcome], float]:
    """`load` where no event loop runs yet; the outcomes and the seconds that it took."""
    start = time.perf_counter()
    outcomes = asyncio.run(load(url, asks, **bounds))
    return outcomes, time.perf_counter() - start


async def load(
    url: str,
    asks: Iterator[Ask],
    *,
    concurrency: int | None = None,
    seconds: float = math.inf,
    begun: Callable[[Outcome], None] = lambda _outcome: None,
    told: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Send asks and wait for all answers; the outcomes in the order of their ends.

    Args:
        url: of the service.
        asks: in the order of their `due`, if they have one; may be endless if `seconds` is not.
        concurrency: most requests under way, one that was refused for as long as it was told to wait; None is
            no bound.
        seconds: after which nothing new is sent.
        begun: gets each outcome when its request is sent; it is filled in as the answer comes.
        told: gets each outcome when it has ended.
    """
    outcomes: list[Outcome] = []
    room = asyncio.Semaphore(concurrency) if concurrency is not None else None
    timeout = httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency or 1024)
    async with (
        httpx2.AsyncClient(base_url=url, timeout=timeout, limits=limits, trust_env=False) as client,
        asyncio.TaskGroup() as group,
    ):
        start = time.perf_counter()
        # Its own caller: what an earlier load has asked, with the same seed, is computed again.
        caller = f"bench-{secrets.token_hex(8)}"

        async def one(ask: Ask) -> None:
            outcome = _due(ask, start)
            begun(outcome)
            await _send(client, outcome, start + outcome.began, caller)
            outcomes.append(outcome)
            told(outcome)
            if room is not None:
                await asyncio.sleep(min(outcome.retry_after, max(0.0, start + seconds - time.perf_counter())))
                room.release()

        async for ask in _when_due(asks, room, start, seconds):
            group.create_task(one(ask))
    return outcomes


async def _when_due(
    asks: Iterator[Ask], room: asyncio.Semaphore | None, start: float, seconds: float
) -> AsyncIterator[Ask]:
    for ask in asks:
        if ask.due is not None:
            if ask.due > seconds:
                return
            await asyncio.sleep(max(0.0, start + ask.due - time.perf_counter()))
        if room is not None:
            await room.acquire()
        if time.perf_counter() - start > seconds:
            return
        yield ask


def _due(ask: Ask, start: float) -> Outcome:
    now = time.perf_counter() - start
    began = now if ask.due is None else ask.due
    return Outcome(ask, began, now - began)


async def _send(client: httpx2.AsyncClient, outcome: Outcome, zero: float, caller: str) -> None:
    ask = outcome.ask
    body = {
        "model": ask.model,
        "prompt": list(ask.prompt),
        "max_tokens": ask.output,
        "temperature": 0,
        "user": caller,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    headers = {"Authorization": f"Bearer {ask.api_key}"} if ask.api_key else {}
    try:
        async with client.stream("POST", "/v1/completions", json=body, headers=headers) as response:
            if response.status_code >= 400:
                outcome.error = _error(response.status_code, await response.aread())
                outcome.retry_after = _seconds(response.headers.get("retry-after", ""))
            else:
                await _read(response, outcome, zero)
    except (httpx2.TransportError, ValueError) as error:  # a ValueError: what came is no JSON
        outcome.error = type(error).__name__
    outcome.seconds = time.perf_counter() - zero


async def _read(response: httpx2.Response, outcome: Outcome, zero: float) -> None:
    outcome.error = "the stream broke off"
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            outcome.error = None
            return
        chunk: dict[str, Any] = json.loads(data)
        if "error" in chunk:
            outcome.error = _code(response.status_code, chunk["error"])
            return
        if chunk.get("choices"):
            outcome.pieces.append(time.perf_counter() - zero)
        if chunk.get("usage"):
            outcome.tokens = chunk["usage"]["completion_tokens"]


def _seconds(header: str) -> float:
    """Of a Retry-After; 0 for none, and for a date."""
    return float(header) if header.isdecimal() else 0.0


def _error(status: int, content: bytes) -> str:
    try:
        return _code(status, json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return str(status)


def _code(status: int, error: dict[str, Any]) -> str:
    return f"{status} {error.get('code') or error.get('type') or ''}".strip()
