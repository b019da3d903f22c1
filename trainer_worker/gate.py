"""The promotion gate: a version goes live only if it is better than what answers now. Plain numbers only."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefix_store.evaluation import Evaluation


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to go live, and why, for people."""

    promote: bool
    reason: str


def judge(
    held_out: float, base: float, live: float | None, compared: float | None = None, rows: int | None = None
) -> Verdict:
    """Compare losses on the same rows; one that is not a number beats nothing, and a live version with such a one serves nobody.

    Args:
        held_out: of the new version.
        base: of the base model.
        live: of the live version; None where there is none that could serve.
        compared: of the new version on the rows that fit behind the live one, if these are not all.
        rows: how many these are.
    """
    if rows == 0:
        return Verdict(False, "no held-out row fits behind the live version, so the two cannot be compared")
    what = f"its held-out loss {held_out:.4f}"
    shown = [(what, f"the base model's {base:.4f}", _beats(held_out, base))]
    if live is not None and not math.isnan(live):
        own = held_out if compared is None else compared
        if compared is not None and rows is not None:
            what = f"its loss {own:.4f} on the {rows} held-out rows that fit behind the live version"
        shown.append((what, f"the live version's {live:.4f}", _beats(own, live)))
    return _verdict(shown)


def judge_texts(metric: str, own: float | None, base: float | None, live: float | None) -> Verdict:
    """Compare a metric of the texts written for the same prompts.

    Args:
        metric: of `prefix_store.evaluation.METRICS`; TER counts edits, so that less is better, and 100 or more is
            no better than to say nothing.
        own: of the new version; None where no held-out prompt left room for a text.
        base: of the base model.
        live: of the live version; None where there is none that could serve.
    """
    if own is None or base is None:
        return Verdict(False, f"there were no texts to take {metric} of")
    if metric == "ter":
        own, base, live = min(own, 100.0), min(base, 100.0), None if live is None else min(live, 100.0)
    rivals = [("the base model's", base), *([] if live is None else [("the live version's", live)])]
    sign = 1.0 if metric == "ter" else -1.0
    what = f"the {metric} {own:.4g} of its texts"
    return _verdict(
        [(what, f"{whose} {other:.4g}", _beats(sign * own, sign * other)) for whose, other in rivals]
    )


def _verdict(rivals: Sequence[tuple[str, str, bool]]) -> Verdict:
    """By what, who must be beaten, and whether each was; the reason tells the figures that decided."""
    promote = all(beaten for _, _, beaten in rivals)
    by_what: dict[str, list[str]] = {}
    for what, rival, beaten in rivals:
        if beaten is promote:
            by_what.setdefault(what, []).append(rival)
    verb, more = ("beats", " and ") if promote else ("does not beat", " nor ")
    return Verdict(
        promote, "; ".join(f"{what} {verb} {more.join(rivals)}" for what, rivals in by_what.items())
    )


def _beats(own: float, other: float) -> bool:
    return math.isfinite(own) and own < other


def verdict_on(asked: Evaluation | None, metrics: Mapping[str, Any]) -> Verdict:
    """Judge a version by what its job asked for: a metric of texts, else the loss.

    Args:
        asked: the job's evaluation.
        metrics: that the run measured, without those that have no value.
    """
    if asked is not None and asked.gate != "loss":
        own = (metrics.get(name) for name in (asked.gate, f"base_{asked.gate}", f"live_{asked.gate}"))
        return judge_texts(asked.gate, *own)
    compared, rows = metrics.get("compared_loss"), metrics.get("compared_rows")
    if rows is not None and rows == metrics.get("held_out_rows"):
        compared = rows = None  # all of them
    return judge(metrics["held_out_loss"], metrics["base_loss"], metrics.get("live_loss"), compared, rows)
