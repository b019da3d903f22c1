"""Plots of the studies, as SVG files that are the same bytes for the same results.

A plot for which nothing was run is left out, and an older file of it stays.
"""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from bench.paper.records import Record
from bench.paper.records import scores as current
from bench.paper.settings import MINI
from bench.paper.table import label, newest, sizes
from bench.plots import PLAIN, STYLE
from trainer_worker.results import FAINT, OTHER, OURS

SHOWN = (("bleu", "BLEU"), ("rouge_l", "ROUGE-L"), ("slot_error", "slot errors, %"))
DECODINGS = {MINI: "greedy"}  # by base: there beams find repetitions, and vary most from seed to seed
DECODING = "beam5"  # on others, as the paper
Points = dict[float, list[float]]


def draw(records: Sequence[Record], into: Path, mark: str = "") -> dict[str, str]:
    """Draw every plot that has results, under names that begin with the mark; what became of each."""
    into.mkdir(parents=True, exist_ok=True)
    told: dict[str, str] = {}
    records = newest(records)
    for study, way in WAYS.items():
        asked = [r for r in records if r["study"] == study and r["scores"]]
        found = [r for r in asked if scores(r)]
        for alike in dict.fromkeys(map(sizes, found)):  # runs of unlike sizes never share a picture
            some = [record for record in found if sizes(record) == alike]
            name = f"{mark}{study}-{'-'.join(_told(alike))}".replace(" ", "-")
            with mpl.rc_context(STYLE):
                path = into / f"{name}.svg"
                title = f"{study}: {', '.join(_told(alike))}, {decoding_of(some[0])}"
                way(some, title).savefig(path, metadata={"Date": None, "Creator": None})
            told[name] = str(path)
        if not found:
            told[study] = (
                f"left out: no {decoding_of(asked[0])} scores" if asked else "left out: nothing was run"
            )
    return told


def low_data(records: Sequence[Record], title: str) -> Figure:
    """Scores against the number of training rows; mean and standard deviation over samples and seeds."""
    return _curves(records, title, lambda r: r["training_rows"], lambda r: r["method"], "training rows")


def length(records: Sequence[Record], title: str) -> Figure:
    """Scores against the positions of the prefix."""
    return _curves(
        records, title, lambda r: r["settings"]["size"], lambda _: "prefix", "positions of the prefix"
    )


def init(records: Sequence[Record], title: str) -> Figure:
    """Scores by what the prefix began with."""
    return _bars(records, title)


def main(records: Sequence[Record], title: str) -> Figure:
    """Scores by method."""
    return _bars(records, title)


WAYS: dict[str, Callable[[Sequence[Record], str], Figure]] = {
    "main": main,
    "extrapolation": main,
    "low-data": low_data,
    "length": length,
    "init": init,
}


def _told(alike: tuple) -> list[str]:
    """Sizes as words: the base, the task, and what was limited."""
    base, task, steps, epochs, rate, inputs, rows, _, draw = alike
    counts = ((rows, "rows"), (inputs, "inputs"), (steps, "updates"), (epochs, "epochs"))
    more = ([f"rate {rate:g}"] if rate else []) + ([f"draw {draw}"] if draw > 1 else [])
    return [base, task, *(f"{n} {what}" for n, what in counts if n), *more]


def decoding_of(record: Record) -> str:
    """The one decoding whose scores are drawn of a base."""
    return DECODINGS.get(record["base"], DECODING)


def scores(record: Record) -> dict[str, float]:
    """Those of the base's decoding, empty without it; on unseen categories if there are any."""
    decoding = decoding_of(record)
    return current(record, decoding, "unseen") or current(record, decoding, "all")


def _shown(records: Sequence[Record]) -> list[tuple[str, str]]:
    return [(name, text) for name, text in SHOWN if any(name in scores(r) for r in records)]


def _curves(records: Sequence[Record], title: str, across, series, xlabel: str) -> Figure:
    shown = _shown(records)
    figure = _figure(len(shown), 3.6)
    for place, (name, text) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        lines: dict[str, Points] = defaultdict(lambda: defaultdict(list))
        for record in records:
            if name in scores(record):
                lines[series(record)][across(record)].append(scores(record)[name])
        for number, (method, points) in enumerate(
            sorted(lines.items(), key=lambda pair: pair[0] != "prefix")
        ):
            at = sorted(points)
            spread = [statistics.stdev(points[x]) if len(points[x]) > 1 else 0.0 for x in at]
            color = (OURS, OTHER, FAINT)[min(number, 2)]
            middles = [statistics.mean(points[x]) for x in at]
            axes.errorbar(at, middles, yerr=spread, color=color, capsize=3, label=method)
        axes.set(xlabel=xlabel, ylabel=text, xscale="log")
        axes.xaxis.set_major_formatter(PLAIN)
        axes.xaxis.set_ticks(sorted({across(r) for r in records}), minor=False)
        axes.xaxis.set_ticks([], minor=True)
        axes.set_ylim(0)
        axes.legend()
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    return figure


def _bars(records: Sequence[Record], title: str) -> Figure:
    shown = _shown(records)
    names = list(dict.fromkeys(label(record) for record in records))[::-1]
    figure = _figure(len(shown), 1.4 + 0.3 * len(names))
    for place, (name, text) in enumerate(shown, 1):
        axes = figure.add_subplot(1, len(shown), place)
        for row, line in enumerate(names):
            found = [scores(r)[name] for r in records if label(r) == line and name in scores(r)]
            if not found:
                continue
            spread = statistics.stdev(found) if len(found) > 1 else None
            ours = line.startswith("prefix")
            axes.barh(row, statistics.mean(found), xerr=spread, color=OURS if ours else OTHER, capsize=3)
        axes.set_yticks(range(len(names)), names if place == 1 else [""] * len(names))
        axes.set(xlabel=text, xlim=(0, None))
        axes.grid(visible=False, axis="y")
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    return figure


def _figure(panels: int, height: float) -> Figure:
    return Figure(figsize=(3.4 * panels + 2.6, height), layout="constrained")
