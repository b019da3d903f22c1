"""What a job wants to know of its prefix beside the loss, as it stands in the job's row: checked here, done by the trainer."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from prefix_store.errors import Invalid

METRICS = ("bleu", "chrf", "ter", "exact_match")
_BOUNDS = {"prompts": (1, 1000), "max_tokens": (1, 512)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Texts generated for held-out prompts, compared with their completions.

    Attributes:
        metrics: of `METRICS`.
        prompts: most prompts, taken evenly of those held out.
        max_tokens: of each text.
        gate: what decides whether the version goes live: `loss`, or one of `metrics`.
    """

    metrics: tuple[str, ...] = ("bleu", "chrf", "exact_match")  # TER takes seconds a long text
    prompts: int = 100
    max_tokens: int = 64
    gate: str = "loss"

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "Evaluation":
        """Read and check; what is absent or null has its default.

        Raises:
            Invalid: an unknown name, a wrong type or a value out of bounds; `param` names it.
        """
        given = {name: value for name, value in values.items() if value is not None}
        known = [field.name for field in fields(Evaluation)]
        if unknown := set(given).difference(known):
            raise Invalid(f"evaluation.{min(unknown)}", f"unknown; known are {', '.join(known)}")
        if "metrics" in given:
            given["metrics"] = _metrics(given["metrics"])
        for name, (low, high) in _BOUNDS.items():
            value = given.get(name, low)
            if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
                raise Invalid(f"evaluation.{name}", f"{name} must be an integer between {low} and {high}")
        read = Evaluation(**given)
        if read.gate not in ("loss", *read.metrics):
            raise Invalid("evaluation.gate", f"gate must be one of {', '.join(('loss', *read.metrics))}")
        return read

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {**asdict(self), "metrics": list(self.metrics)}


def _metrics(given: Any) -> tuple[str, ...]:
    if not isinstance(given, list) or not given or not all(name in METRICS for name in given):
        raise Invalid("evaluation.metrics", f"metrics must be a list of some of {', '.join(METRICS)}")
    return tuple(name for name in METRICS if name in given)
