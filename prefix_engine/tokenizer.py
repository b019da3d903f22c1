"""Text to token ids and back, for byte-level BPE. Knows nothing of models or templates.

Text is never parsed for special tokens: a user who writes `<|endoftext|>` gets the tokens of those
characters, not the end of the text, so no prompt can end itself or forge a separator.
"""

import codecs
from typing import Any


def _byte_of_char() -> dict[str, int]:
    """Map each character of a byte-level BPE vocabulary to its byte (the table of GPT-2's encoder.py)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(256 + place): byte for place, byte in enumerate(others)})
    return table


class Tokenizer:
    """A byte-level BPE tokenizer; `backend` is a `tokenizers.Tokenizer`.

    `longest` is the length of its longest token, in bytes: a text has at least 1/longest as many tokens.
    """

    def __init__(self, backend: Any, end_id: int) -> None:
        backend.encode_special_tokens = True
        # tokenizer.json may hold what its last user cut and padded texts to; transformers too does neither unasked.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.end_id = end_id
        specials = {
            i: str(token.content) for i, token in backend.get_added_tokens_decoder().items() if token.special
        }
        byte_of = _byte_of_char()
        vocabulary = backend.get_vocab()
        self._bytes = [b""] * (max(vocabulary.values(), default=-1) + 1)  # ids may have gaps
        for token, i in vocabulary.items():
            if i not in specials:
                self._bytes[i] = bytes(byte_of[char] for char in token)

        self._specials = specials
        self.longest = max(map(len, self._bytes), default=0)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are read as plain characters."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return ids

    def token_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that `token` stands for; empty for special tokens and ids without an entry."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def special_name(self, token: int) -> str | None:
        """What a special token is called, such as `<|endoftext|>`; None for all others."""
        return self._specials.get(token)

    def decode(self, tokens: list[int]) -> str:
        """Text of `tokens`, with U+FFFD where the bytes are no valid UTF-8."""
        return b"".join(map(self.token_bytes, tokens)).decode("utf-8", errors="replace")

    def to_json(self) -> str:
        """Return the whole tokenizer as JSON, for the fingerprint of the base."""
        text: str = self._backend.to_str()
        return text


class IncrementalDecoder:
    """Bytes of one stream of tokens to text, holding back a character until it is whole."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token: int) -> str:
        """Text that became certain with `token`; may be empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token))

    def finish(self) -> str:
        """Text left at the end: U+FFFD for a character cut short, else empty."""
        return self._utf8.decode(b"", final=True)
