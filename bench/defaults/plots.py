"""The study as pictures, SVG files that are the same bytes for the same results."""

import statistics
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.defaults.results import Result, runs
from bench.defaults.table import TITLES as PARTS
from bench.defaults.table import Line, lines
from bench.defaults.trials import AROUND, HALVES, MIDDLE, SIZES, Settings
from bench.plots import STYLE
from trainer_worker.results import FAINT, OTHER, OURS

COLORS = {"choosing": OURS, "reporting": FAINT}
COLUMNS = 2
TITLES = {
    f"defaults-{examples}": f"Loss less the middle's by setting, {examples} examples" for examples in AROUND
} | {"defaults-size": "Loss by the number of examples"}


def draw(results: Sequence[Result], into: Path) -> dict[str, Path | None]:
    """Draw what there are results for: where each picture lies, None for one that was left out; an older file stays."""
    into.mkdir(parents=True, exist_ok=True)
    told: dict[str, Path | None] = {}
    for name, figure in _figures(results).items():
        told[name] = None if figure is None else into / f"{name}.svg"
        if figure is not None:
            with mpl.rc_context(STYLE):
                figure.savefig(told[name], metadata={"Date": None, "Creator": None})
    return told


def _figures(results: Sequence[Result]) -> dict[str, Figure | None]:
    with mpl.rc_context(STYLE):
        settings = {f"defaults-{examples}": _settings(results, examples) for examples in AROUND}
        return settings | {"defaults-size": _size(results)}


def _settings(results: Sequence[Result], examples: int) -> Figure | None:
    """A panel for each part: loss less the middle's, by setting."""
    found = {part: lines(results, part, examples) for part in AROUND[examples]}
    shown = {part: some for part, some in found.items() if len(some) > 1}
    if not shown:
        return None
    rows = -(-len(shown) // COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 2.6 * rows), layout="constrained")
    for place, (part, some) in enumerate(shown.items(), 1):
        _panel(figure.add_subplot(rows, COLUMNS, place), part, some)
    figure.suptitle(TITLES[f"defaults-{examples}"], fontsize="medium", fontweight="bold")
    return figure


def _panel(axes: Axes, part: str, some: Sequence[Line]) -> None:
    """Mean and range over datasets and seeds, from the lowest loss of a half to its highest."""
    for shift, (half, color) in zip((-0.12, 0.12), COLORS.items(), strict=True):
        found = [line.differences(half) for line in some]
        middles = [statistics.mean(each) for each in found]
        spread = [
            [mean - min(each) for mean, each in zip(middles, found, strict=True)],
            [max(each) - mean for mean, each in zip(middles, found, strict=True)],
        ]
        at = [place + shift for place in range(len(some))]
        axes.errorbar(at, middles, yerr=spread, color=color, linestyle="", capsize=3, label=half)
    axes.axhline(0, color=OTHER, linewidth=1, marker="")
    axes.set_xticks(range(len(some)), [line.label.replace(", ", ",\n") for line in some], fontsize="x-small")
    axes.set(title=PARTS[part], ylabel="nats a token")
    axes.legend(fontsize="x-small")


def _size(results: Sequence[Result]) -> Figure | None:
    """A panel for each dataset: loss by the number of examples."""
    ways: tuple[tuple[str, Settings | None, str], ...] = (
        ("what the product takes by itself", None, OURS),
        ("the middle's settings", MIDDLE, FAINT),
    )
    found = {label: {size: runs(results, size, settings) for size in SIZES} for label, settings, _ in ways}
    datasets = [
        name
        for names in HALVES.values()
        for name in names
        if any(name == at[0] for sizes in found.values() for some in sizes.values() for at in some)
    ]
    if not datasets:
        return None
    rows = -(-len(datasets) // COLUMNS)
    figure = Figure(figsize=(4.6 * COLUMNS, 2.8 * rows), layout="constrained")
    for place, name in enumerate(datasets, 1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        for label, _, color in ways:
            points = {
                at: [run["loss"] for (dataset, _), run in some.items() if dataset == name]
                for at, some in enumerate(found[label].values())
            }
            shown = {at: statistics.mean(losses) for at, losses in points.items() if losses}
            axes.plot(list(shown), list(shown.values()), color=color, label=label)
        axes.set_xticks(range(len(SIZES)), [str(size or "all") for size in SIZES])
        axes.set(title=name, xlabel="examples", ylabel="nats a token")
        axes.legend(fontsize="x-small")
    figure.suptitle(TITLES["defaults-size"], fontsize="medium", fontweight="bold")
    return figure
