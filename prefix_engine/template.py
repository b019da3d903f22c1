"""How a prompt and its completion become token ids: the same rule in training and at generation.

A row's tokens are `encode(prompt + separator)`, then `encode(completion)`, then the end token. The two
parts are encoded apart, so that generation, which knows the prompt only, sees exactly the ids that
training saw: byte-level BPE could otherwise merge across the seam. The template is stored with each
version; a prompt given as token ids never passes through here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prefix_engine.tokenizer import Tokenizer

SEPARATOR = "\n"


@dataclass(frozen=True, slots=True)
class Template:
    """What stands between prompt and completion, and what ends the completion.

    Attributes:
        separator: text put after the prompt; it belongs to the prompt and carries no loss.
        end_id: token that ends the completion; generation stops at it.
    """

    separator: str
    end_id: int

    @staticmethod
    def of(tokenizer: Tokenizer) -> "Template":
        """The template of new versions: a line break, and the base's end token."""
        return Template(SEPARATOR, tokenizer.end_id)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Template":
        """Read what `to_json` made.

        Raises:
            ValueError: a field is missing or of another type.
        """
        separator, end_id = values.get("separator"), values.get("end_id")
        if not isinstance(separator, str) or not isinstance(end_id, int) or isinstance(end_id, bool):
            raise ValueError("a template has a text `separator` and an integer `end_id`")  # noqa: TRY004
        return Template(separator, end_id)

    def to_json(self) -> dict[str, Any]:
        """The form that is stored with a version."""
        return {"separator": self.separator, "end_id": self.end_id}

    def prompt_ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids of a prompt with its separator: what generation starts from."""
        return tokenizer.encode(text + self.separator)

    def completion_ids(self, tokenizer: Tokenizer, text: str) -> list[int]:
        """Ids of a completion with the end token: what carries the loss."""
        return [*tokenizer.encode(text), self.end_id]
