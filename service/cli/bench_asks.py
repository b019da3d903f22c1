"""What a load asks for: models, lengths and moments, drawn by a seed. Plain Python; sends nothing."""

import itertools
import random
import re
from collections.abc import Iterator, Sequence

from service.cli.bench_load import Ask
from service.cli.terminal import CommandError

_BYTES = 256  # ids below are bytes in every vocabulary of GPT-2's kind


def lengths(text: str) -> tuple[int, int]:
    """Smallest and largest of a range such as `20-400`, or of one number.

    Raises:
        CommandError: neither.
    """
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
    low = int(match[1]) if match else 0
    high = int(match[2] or low) if match else 0
    if not 1 <= low <= high:
        raise CommandError(f"{text!r} is no range of lengths; write one as 20-400, or one number")
    return low, high


def popularity(count: int, exponent: float) -> list[float]:
    """Zipf's weights of `count` models, the first the most asked for; an exponent of 0 makes all alike."""
    return [1.0 / (place + 1) ** exponent for place in range(count)]


def draw(
    models: Sequence[str],
    *,
    prompt: tuple[int, int],
    output: tuple[int, int],
    rate: float | None = None,
    zipf: float = 0.0,
    seed: int = 0,
    api_key: str | None = None,
    label: str = "",
) -> Iterator[Ask]:
    """Endless asks.

    Args:
        models: names, the most popular first.
        prompt: fewest and most tokens of a prompt, uniformly drawn.
        output: the same of an answer.
        rate: requests a second of a Poisson process; None gives no moments.
        zipf: exponent of the models' popularity.
        seed: of all that is drawn.
        api_key: that all are sent with.
        label: that all carry.
    """
    drawn = random.Random(seed)  # noqa: S311 - repeatable, not secret
    weights = list(itertools.accumulate(popularity(len(models), zipf)))
    due = None if rate is None else 0.0
    while True:
        if rate is not None and due is not None:
            due += drawn.expovariate(rate)
        model = drawn.choices(models, cum_weights=weights)[0]
        ids = tuple(drawn.randrange(_BYTES) for _ in range(drawn.randint(*prompt)))
        yield Ask(model, ids, drawn.randint(*output), due, api_key, label)
