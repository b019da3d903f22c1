"""Tokens of one row to text that may be shown: whole characters, never any part of a stop string."""

from collections.abc import Sequence as Items
from dataclasses import replace

from prefix_engine.request import TokenInfo
from prefix_engine.sampling import Score
from prefix_engine.tokenizer import IncrementalDecoder, Tokenizer


class StopFilter:
    """Text in pieces; gives back what is certain, up to the first stop string.

    The stop string that is complete first ends the text, the longest one where two are complete at the
    same character, so the pieces do not matter.
    """

    def __init__(self, stops: Items[str]) -> None:
        self._stops = stops
        self.held = ""

    def push(self, text: str, *, accept: bool = True) -> tuple[str, bool]:
        """Add a piece.

        Args:
            text: the piece.
            accept: whether a stop string that `text` completes ends the text; otherwise it is plain text.

        Returns:
            What may be shown now, and whether a stop string ended it.
        """
        whole = self.held + text
        cut = self._first_stop(whole, len(self.held)) if accept else None
        if cut is not None:
            self.held = ""
            return whole[:cut], True
        keep = self._unsure(whole)
        self.held = whole[len(whole) - keep :]
        return whole[: len(whole) - keep], False

    def finish(self) -> str:
        """What was held back, at the end of the text."""
        held, self.held = self.held, ""
        return held

    def _first_stop(self, whole: str, known: int) -> int | None:
        """Start of the stop string that ends first, and after `known` characters."""
        found = []
        for stop in self._stops:
            start = whole.find(stop, max(0, known - len(stop) + 1))
            if start >= 0:
                found.append((start + len(stop), start))
        return min(found)[1] if found else None

    def _unsure(self, whole: str) -> int:
        """Length of the longest end of `whole` that could become a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for size in range(min(longest, len(whole)), 0, -1):
            tail = whole[len(whole) - size :]
            if any(len(stop) > size and stop.startswith(tail) for stop in self._stops):
                return size
        return 0


class TextStream:
    """The answer of one row: pushes tokens in, takes text and the tokens that made it out.

    A token is given out once all its text is; the one that a stop string cuts carries the part before
    it, those after it are dropped.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Items[str]) -> None:
        self._tokenizer = tokenizer
        self._decoder = IncrementalDecoder(tokenizer)
        self._filter = StopFilter(stops)
        self._decoded = 0  # characters so far
        self._shown = 0
        self._waiting: list[tuple[int, int, TokenInfo]] = []  # start and end of its text in the answer

    def prime(self, token: int) -> str:
        """Text of a prompt token that is echoed; no stop string is looked for in it."""
        text = self._decoder.push(token)
        self._decoded += len(text)
        self._shown += len(text)
        return text

    def push(self, info: TokenInfo, *, accept: bool = True) -> tuple[str, tuple[TokenInfo, ...], bool]:
        """Add a token; returns text, tokens and whether a stop string ended the text."""
        text = self._decoder.push(info.id)
        start, self._decoded = self._decoded, self._decoded + len(text)
        # Bytes without a character belong to the next one, which may be part of a stop string.
        unfinished = not text and self._tokenizer.token_bytes(info.id)
        # What was pending before a whole token reads as U+FFFD, which is none of its own text.
        if text and not info.text.startswith("bytes:"):
            start += max(0, len(text) - len(info.text))
        self._waiting.append((start, start + 1 if unfinished else self._decoded, info))
        return self._show(*self._filter.push(text, accept=accept))

    def finish(self, *, accept: bool = True) -> tuple[str, tuple[TokenInfo, ...], bool]:
        """The rest, at the end of the text; a character cut short reads as U+FFFD."""
        text = self._decoder.finish()
        self._decoded += len(text)
        shown, stopped = self._filter.push(text, accept=accept)
        return self._show(shown if stopped else shown + self._filter.finish(), stopped)

    def _show(self, text: str, stopped: bool) -> tuple[str, tuple[TokenInfo, ...], bool]:
        self._shown += len(text)
        tokens: list[TokenInfo] = []
        while self._waiting and self._waiting[0][1] <= self._shown:
            tokens.append(self._waiting.pop(0)[2])
        if stopped and self._waiting and self._waiting[0][0] < self._shown:
            start, _, info = self._waiting[0]
            own = info.text.startswith("bytes:")
            tokens.append(replace(info, text="" if own else info.text[: self._shown - start]))
        return text, tuple(tokens), stopped


def token_text(tokenizer: Tokenizer, token: int) -> str:
    r"""A token by itself; `bytes:\xe2\x80` where its bytes are no whole UTF-8, as OpenAI writes it."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def token_info(tokenizer: Tokenizer, token: int, score: Score | None) -> TokenInfo:
    """A token as it is given out, with its score if there is one."""
    text = token_text(tokenizer, token)
    if score is None:
        return TokenInfo(token, text)
    best = score.top
    if best and all(i != token for i, _ in best):
        best = (*best, (token, score.logprob))
    top = tuple((i, tokenizer.special_name(i) or token_text(tokenizer, i), logprob) for i, logprob in best)
    return TokenInfo(token, text, score.logprob, top)
