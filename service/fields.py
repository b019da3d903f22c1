"""Types of the fields of bodies: text that can be stored, prompts, small JSON.

What may be long is checked by hand and up to its first fault: a report of every fault of a large body
would cost more than the body.
"""

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

from prefix_engine.request import MOST_STOP
from prefix_store.names import NAME

MOST_ROWS = 128
MOST_BIASES = 1024
MOST_ENTRIES = 64
_DEEPEST = 4
_SEED = (1 << 63) - 1
_NAME = 200


def _whole(text: str) -> str:
    """Text that is Unicode: JSON can write halves of characters, which no file or socket takes."""
    if not _is_whole(text):
        raise ValueError("not valid Unicode text (a lone surrogate)")
    return text


def _is_whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _no_nul(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not hold NUL")
    return text


def few(most: int) -> BeforeValidator:
    """Refuse a list or object of over `most` entries before any is looked at."""

    def check(value: Any) -> Any:
        if isinstance(value, (list, dict)) and len(value) > most:
            raise ValueError(f"at most {most} entries")
        return value

    return BeforeValidator(check)


def _plain(value: Any, depth: int = _DEEPEST) -> Any:
    """JSON that is small, shallow and whole."""
    if isinstance(value, str):
        _no_nul(_whole(value))
    elif isinstance(value, (list, dict)):
        if not depth or len(value) > MOST_ENTRIES:
            raise ValueError("too large or too deep")
        for part in value:
            _plain(part, depth - 1)
        if isinstance(value, dict):
            for part in value.values():
                _plain(part, depth - 1)
    return value


def _prompt(value: Any) -> Any:
    """A text, texts, token ids or lists of them; nothing else, and never a list of both."""
    if value is None or isinstance(value, str):
        return value if value is None else _whole(value)
    if not isinstance(value, list):
        raise ValueError("give a text, token ids, or a list of one of these")  # noqa: TRY004 - pydantic's way
    if value and isinstance(value[0], int):
        return _ids(value)
    if len(value) > MOST_ROWS:
        raise ValueError(f"at most {MOST_ROWS} prompts; send less at once")
    kind = str if value and isinstance(value[0], str) else list
    for one in value:
        if not isinstance(one, kind):
            raise ValueError("give a list of texts, or a list of lists of token ids, not a mixture")  # noqa: TRY004 - see above
        _whole(one) if isinstance(one, str) else _ids(one)
    return value


def _ids(value: list[Any]) -> list[Any]:
    for token in value:
        if type(token) is not int or token < 0:
            raise ValueError("token ids are whole numbers from 0 on")
    return value


Stop = Annotated[str, StringConstraints(strict=True, max_length=MOST_STOP), AfterValidator(_whole)]
Text = Annotated[str, StringConstraints(strict=True), AfterValidator(_whole), AfterValidator(_no_nul)]
# What people name themselves; whether it is one the store tells, which knows the reserved ones.
Label = Annotated[Text, WithJsonSchema({"type": "string", "pattern": f"^{NAME.pattern}$"})]
Name = Annotated[
    str,
    StringConstraints(strict=True, min_length=1, max_length=_NAME),
    AfterValidator(_whole),
    AfterValidator(_no_nul),
]
Hyper = Annotated[dict[str, Any], AfterValidator(_plain)]
Seed = Annotated[int, Field(ge=-_SEED, le=_SEED)]
_IDS: Any = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_TEXT: Any = {"type": "string"}
Prompt = Annotated[
    Any,
    AfterValidator(_prompt),
    WithJsonSchema(
        {
            "anyOf": [
                _TEXT,
                {"type": "array", "items": _TEXT},
                _IDS,
                {"type": "array", "items": _IDS},
                {"type": "null"},
            ]
        }
    ),
]
