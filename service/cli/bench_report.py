"""What the times of a load come to: percentiles, rates, errors by code; as numbers and as a table."""

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from service.cli.bench_load import Outcome
from service.cli.terminal import out, plain, show_table

POINTS = (50, 90, 95, 99)
SHOWN = {
    "first_token": "time to first token",
    "between_tokens": "time between tokens",
    "per_token": "mean time between an answer's tokens",
    "whole": "time to the end",
}


def percentile(values: Sequence[float], point: float) -> float:
    """The value that `point` percent do not exceed, between two values by their distance.

    Raises:
        ValueError: no values.
    """
    if not values:
        raise ValueError("no values")
    ordered = sorted(values)
    place = (len(ordered) - 1) * point / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, percentiles and maximum; None of nothing."""
    if not values:
        return None
    found = {f"p{point}": percentile(values, point) for point in POINTS}
    return {"count": len(values), "mean": statistics.fmean(values), **found, "max": max(values)}


def summary(outcomes: Iterable[Outcome], seconds: float) -> dict[str, Any]:
    """All numbers of a load that took `seconds`; times in seconds.

    Tokens and requests a second count whole answers; what was refused or broke off is under `errors`.
    """
    every = list(outcomes)
    good = [outcome for outcome in every if outcome.error is None and outcome.pieces]
    tokens = sum(outcome.tokens for outcome in good)
    return {
        "seconds": seconds,
        "requests": len(every),
        "answered": len(good),
        "errors": dict(Counter(o.error or "an empty answer" for o in every if o not in good).most_common()),
        "requests_per_second": len(good) / seconds,
        "tokens_per_second": tokens / seconds,
        "prompt_tokens": sum(len(outcome.ask.prompt) for outcome in good),
        "completion_tokens": tokens,
        "first_token": spread([outcome.first for outcome in good]),
        "between_tokens": spread([gap for outcome in good for gap in outcome.gaps]),
        "per_token": spread([o.per_token for o in good if o.per_token is not None]),
        "whole": spread([outcome.seconds for outcome in good]),
        "sent_late": spread([outcome.lag for outcome in every]),
    }


def show(found: dict[str, Any]) -> None:
    """Print a summary."""
    columns = ("ms", "mean", *(f"p{point}" for point in POINTS), "max")
    rows = []
    for name, title in SHOWN.items():
        times = found[name]
        if times is not None:
            rows.append((title, *(f"{times[column] * 1000:.1f}" for column in columns[1:])))
    show_table(columns, rows, "no answer came")
    console = out()
    console.print(
        plain(
            f"\n{found['answered']} of {found['requests']} requests answered in {found['seconds']:.1f} s: "
            f"{found['requests_per_second']:.2f} requests/s, {found['tokens_per_second']:.1f} tokens/s "
            f"({found['prompt_tokens']} prompt tokens, {found['completion_tokens']} generated)"
        )
    )
    for error, count in found["errors"].items():
        console.print(plain(f"{count} x {error}"))
    late = found["sent_late"]
    if late is not None and late["p99"] > 0.01:
        console.print(plain(f"this client was busy: 1% were sent over {late['p99'] * 1000:.0f} ms late"))
