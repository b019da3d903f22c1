"""A run's result files: all its numbers as JSON, and a picture of how the losses went. No text of any dataset."""

import io
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefix_store.evaluation import Evaluation

Point = Mapping[str, float | None]
Texts = Mapping[str, Mapping[str, float]]  # who wrote -> metric -> score

OURS, OTHER, FAINT = "#0b6e99", "#9aa5ad", "#c44e00"  # told apart by the colour-blind and in grey
PICTURES: Any = {
    "svg.hashsalt": "prefixserve",  # else ids are drawn by chance
    "svg.fonttype": "none",  # text stays text
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e6e8",
    "legend.frameon": False,
    "figure.facecolor": "white",  # readable on dark pages too
}


def files(
    metrics: Mapping[str, Any], curve: Sequence[Point], evaluation: Evaluation | None, texts: Texts
) -> dict[str, bytes]:
    """`results.json` and `losses.svg`.

    Args:
        metrics: of the job; those without a value, or without a finite one, are left out.
        curve: of the run's events: `step`, `train_loss`, `valid_loss`; what was not looked at is absent.
        evaluation: what was asked for.
        texts: scores of the texts.
    """
    numbers = {
        name: value
        for name, value in metrics.items()
        if value is not None and (isinstance(value, str) or math.isfinite(value))
    }
    asked = None if evaluation is None else evaluation.to_json()
    told = {"metrics": numbers, "curve": list(curve), "evaluation": asked, "texts": texts}
    return {
        "results.json": json.dumps(told, indent=1, allow_nan=False).encode(),
        "losses.svg": _picture(numbers, curve, texts),
    }


def _picture(metrics: Mapping[str, Any], curve: Sequence[Point], texts: Texts) -> bytes:
    """The losses over the updates beside those of the base and the live version, and the texts' scores if any."""
    import matplotlib as mpl  # noqa: PLC0415 - slow, and needed at a run's end
    from matplotlib.figure import Figure  # noqa: PLC0415

    shown = sorted({name for scores in texts.values() for name in scores})
    with mpl.rc_context(PICTURES):
        figure = Figure((5.5 + 2.2 * len(shown), 3.6), layout="constrained")
        grid = figure.subplots(1, 1 + len(shown), squeeze=False, width_ratios=[2.5] + [1] * len(shown))[0]
        losses = grid[0]
        for name, label, color, style in (
            ("train_loss", "training", OTHER, "-"),
            ("valid_loss", "held out", OURS, "o-"),
        ):
            points = [(point["step"], point[name]) for point in curve if point.get(name) is not None]
            losses.plot(*zip(*points, strict=True) if points else ([], []), style, color=color, label=label)
        for name, label, style in (
            ("base_loss", "base, held out", ":"),
            ("live_loss", f"live version, {_compared(metrics)}", "--"),
        ):
            if metrics.get(name) is not None:
                losses.axhline(metrics[name], color=FAINT, linestyle=style, label=label)
        losses.set(title="loss", xlabel="updates", ylabel="nats a token")
        losses.legend()
        for axes, name in zip(grid[1:], shown, strict=True):
            who = [writer for writer in texts if name in texts[writer]]
            bars = axes.bar(who, [texts[writer][name] for writer in who], color=OTHER, width=0.6)
            bars[0].set_color(OURS)
            axes.bar_label(bars, fmt="%.3g")
            axes.set(title=name)
        out = io.BytesIO()
        figure.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()


def _compared(metrics: Mapping[str, Any]) -> str:
    """Which rows the live version's loss is of: those that fit behind it."""
    rows, of = metrics.get("compared_rows"), metrics.get("held_out_rows")
    return "held out" if rows is None or rows == of else f"on {rows} of {of} held out"
