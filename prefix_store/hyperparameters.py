"""Hyperparameters of a training job as they stand in its row: checked here, resolved by the trainer.

None means "auto": the trainer chooses by the size of the dataset. Names are OpenAI's where OpenAI has
one (n_epochs, batch_size, learning_rate_multiplier).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from prefix_store.errors import Invalid

_BOUNDS: dict[str, tuple[type, float, float]] = {
    "n_epochs": (int, 1, 1000),
    "batch_size": (int, 1, 256),
    "learning_rate_multiplier": (float, 1e-4, 1e4),
    "learning_rate": (float, 1e-8, 10.0),
    "prefix_length": (int, 1, 512),
    "max_steps": (int, 1, 1_000_000),
    "warmup_steps": (int, 0, 100_000),
    "weight_decay": (float, 0.0, 10.0),
    "dropout": (float, 0.0, 0.9),
    "eval_steps": (int, 1, 1_000_000),
}
_CHOICES = {"parametrization": ("mlp", "direct"), "init": ("words", "random"), "text_start": ("m", "0")}
_LONGEST_INIT_TEXT = 4000


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """One job's wishes; `learning_rate` is per update, `max_steps` counts updates, `dropout` is a share."""

    n_epochs: int | None = None
    batch_size: int | None = None
    learning_rate_multiplier: float | None = None
    learning_rate: float | None = None
    prefix_length: int | None = None
    max_steps: int | None = None
    warmup_steps: int | None = None
    weight_decay: float | None = None
    dropout: float | None = None
    eval_steps: int | None = None
    parametrization: Literal["mlp", "direct"] | None = None
    init: Literal["words", "random"] | None = None
    init_text: str | None = None
    text_start: Literal["m", "0"] | None = None

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Hyperparameters":
        """Read and check; "auto" and null mean None.

        Raises:
            Invalid: an unknown name, a wrong type or a value out of bounds; `param` names it.
        """
        known = {field.name for field in fields(Hyperparameters)}
        for name in values:
            if name not in known:
                known_names = ", ".join(sorted(known))
                raise Invalid(f"hyperparameters.{name}", f"unknown hyperparameter; known are {known_names}")
        read = Hyperparameters(**{k: v for k, v in values.items() if v is not None and v != "auto"})
        read.check()
        return read

    @staticmethod
    def of_row(values: Mapping[str, Any]) -> tuple["Hyperparameters", bool]:
        """As they stand in a job's row, unchecked; and whether a later release wrote names or choices unknown here."""
        known = {field.name for field in fields(Hyperparameters)}
        later = not known.issuperset(values) or any(
            values.get(name) not in (None, *choices) for name, choices in _CHOICES.items()
        )
        return Hyperparameters(**{name: value for name, value in values.items() if name in known}), later

    def check(self) -> None:
        """Raise Invalid for a wrong type, a value out of bounds, or two that exclude each other."""
        for name, value in self.to_json().items():
            _check(name, value)
        if self.learning_rate is not None and self.learning_rate_multiplier is not None:
            raise Invalid(
                "hyperparameters.learning_rate", "give learning_rate or learning_rate_multiplier, not both"
            )
        if self.init == "random" and self.init_text is not None:
            raise Invalid("hyperparameters.init_text", "init_text needs init 'words'")

    def to_json(self) -> dict[str, Any]:
        """Only what was asked for."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def _storable(text: str) -> bool:
    return "\x00" not in text and text.encode(errors="replace").decode() == text


def _check(name: str, value: Any) -> None:
    param = f"hyperparameters.{name}"
    if name in _CHOICES:
        if not isinstance(value, str) or value not in _CHOICES[name]:
            raise Invalid(param, f"{name} must be one of {', '.join(_CHOICES[name])}")
    elif name == "init_text":
        if not isinstance(value, str) or not 0 < len(value) <= _LONGEST_INIT_TEXT:
            raise Invalid(param, f"init_text must be a text of 1 to {_LONGEST_INIT_TEXT} characters")
        if not _storable(value):
            raise Invalid(param, "init_text must be valid Unicode text without NUL")
    else:
        kind, low, high = _BOUNDS[name]
        wanted = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, wanted):
            raise Invalid(param, f"{name} must be {'an integer' if kind is int else 'a number'}")
        if not low <= value <= high or not math.isfinite(value):  # NaN fails the first comparison
            raise Invalid(param, f"{name} must lie between {low:g} and {high:g}")
