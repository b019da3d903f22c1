"""Plots of what was measured, as SVG files that are the same bytes for the same figures.

Run: python -m bench.plots [--quick] [--into docs/plots]

A plot whose sections were not measured is left out, and an older file of it stays.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from bench.plot_names import DRAWN, PLOTS
from bench.results import choose_device, folder, read
from trainer_worker.results import FAINT, OTHER, OURS, PICTURES

PEER = OTHER
STYLE = PICTURES | {
    "font.family": "DejaVu Sans",
    "axes.titlesize": "medium",
    "lines.marker": "o",
    "lines.markersize": 4,
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
}
PLAIN = FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 10 else f"{value:g}")
Raw = dict[str, Any]


def throughput(sweep: Raw) -> Figure:
    """Tokens a second of whole answers against load."""
    figure, (axes,) = _figure(1)
    points, full = sweep["sweep"]["points"], sweep["saturated"]
    service, engine = statistics.median(full["service"]), statistics.median(full["engine"])
    axes.plot([p["load"] for p in points], [p["goodput"] for p in points], color=OURS, label="service")
    axes.axhline(
        service, color=OURS, linestyle=":", marker="", label="service, saturated by a fixed number of streams"
    )
    axes.axhline(engine, color=PEER, linestyle="--", marker="", label="bare engine, the same requests")
    axes.set(xlabel="load, multiples of capacity", ylabel="tokens/s, of whole answers", xlim=0)
    return _finished(figure, "Throughput of the service against load", axes)


def latency(sweep: Raw) -> Figure:
    """Time to the first token and between tokens against load."""
    figure, panels = _figure(2)
    shown = (("first_token", "time to first token"), ("between_tokens", "time between tokens"))
    for axes, (name, title) in zip(panels, shown, strict=True):
        points = [p for p in sweep["sweep"]["points"] if p[name]]
        for point, color, style in (("p50", OURS, "-"), ("p95", FAINT, "--")):
            times = [1000 * p[name][point] for p in points]
            axes.plot([p["load"] for p in points], times, color=color, linestyle=style, label=point)
        axes.set(title=title, xlabel="load, multiples of capacity", ylabel="ms", xlim=0)
        axes.legend(loc="lower right")
    panels[0].set_yscale("log")  # a queue grows by orders, a step does not
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter(PLAIN)
    panels[0].yaxis.set_minor_locator(NullLocator())
    panels[1].set_ylim(0)
    return _finished(figure, "Latency of the service against load, answered requests")


def prefixes(mixing: Raw, registry: Raw) -> Figure:
    """What the number of prefixes costs: of those in a batch, and of those that are registered."""
    figure, (batch, registered) = _figure(2)
    counts = {int(count): 1000 * seconds for count, seconds in mixing["by_count"].items()}
    batch.plot(list(counts), list(counts.values()), color=OURS, label="time per token")
    batch.set(title=f"a batch of {max(counts)} rows", xlabel="distinct prefixes in it")
    batch.set_ylabel("ms per token of a row")
    found = {int(count): points for count, points in registry["milliseconds"].items()}
    for point, color, style in (("p50", OURS, "-"), ("p99", FAINT, "--")):
        times = [statistics.median(points[point]) for points in found.values()]
        registered.plot(list(found), times, color=color, linestyle=style, label=f"resolve and admit, {point}")
    registered.set(title="before the engine", xlabel="prefixes registered", ylabel="ms per request")
    for axes, ticks in ((batch, list(counts)), (registered, list(found))):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.xaxis.set_minor_locator(NullLocator())
    return _finished(figure, "Cost against the number of prefixes", batch, registered)


def length(mixing: Raw) -> Figure:
    """Time per token against the length of the prefixes, with the lower bound."""
    figure, (axes,) = _figure(1)
    found = {int(m): times for m, times in mixing["by_length"].items()}
    for name, color, style, label in (
        ("step", OURS, "-", "measured"),
        ("bound", PEER, "--", "lower bound of this machine"),
    ):
        axes.plot(
            list(found), [1000 * t[name] for t in found.values()], color=color, linestyle=style, label=label
        )
    axes.set(xlabel="m, positions of each row's prefix", ylabel="ms per token of a row")
    return _finished(figure, "Time per token against the length of the prefixes", axes)


def contest(contest: Raw) -> Figure:
    """Tokens a second of everybody who took part in W1."""
    speeds = {name: given for name, given in contest["W1"]["tokens_s"].items() if given}
    names = sorted(speeds, key=lambda name: statistics.median(speeds[name]))
    figure, (axes,) = _figure(1, height=1.6 + 0.32 * len(names))
    for ours, label in ((True, "this engine, with prefixes"), (False, "others; prefixes where they can")):
        shown = [name for name in names if name.startswith("engine") == ours]
        if not shown:
            continue
        middles = [statistics.median(speeds[name]) for name in shown]
        places = [names.index(name) for name in shown]
        bars = axes.barh(places, middles, color=OURS if ours else PEER, label=label)
        axes.bar_label(bars, [f"{value:.0f}" for value in middles], padding=3)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="generated tokens/s, median of the rounds", xlim=(0, None))
    axes.margins(x=0.1)
    axes.grid(visible=False, axis="y")
    figure.legend(loc="outside lower center", ncols=2)
    return _finished(figure, "W1: 32 requests at once, 64 + 32 tokens")


def losses(datasets: Raw) -> Figure:
    """Held-out loss against the time of training; every round a line, who is ours comes first."""
    figure, panels = _figure(len(datasets), height=4.2)
    for axes, (dataset, found) in zip(panels, datasets.items(), strict=True):
        ways = ((OURS, "-"), (FAINT, "--"), (PEER, "-"))
        for (name, curves), (color, style) in zip(found["curves"].items(), ways, strict=True):
            for number, curve in enumerate(curves):
                _, seconds, _, nats = zip(*curve, strict=True)
                label = "_" if number else name
                axes.plot(seconds, nats, color=color, linestyle=style, marker="", linewidth=1, label=label)
        plain = found["base_loss"]
        axes.axhline(plain, color="black", linestyle=":", marker="", linewidth=1, label="the base alone")
        lowest = min(point[3] for curves in found["curves"].values() for curve in curves for point in curve)
        room = max(plain - lowest, 0.1)
        axes.set(title=dataset, xlabel="seconds of training", ylim=(lowest - room / 8, plain + room))
        axes.set_xscale("symlog", linthresh=10)  # one trains many times as long as another
        axes.xaxis.set_major_formatter(PLAIN)
    panels[0].set_ylabel("held-out loss, nats a token")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return _finished(figure, "Held-out loss against the time of training")


WAYS: dict[str, tuple[Callable[..., Figure], tuple[str, ...]]] = {
    "throughput": (throughput, ("service-sweep",)),
    "latency": (latency, ("service-sweep",)),
    "prefixes": (prefixes, ("mixing", "service-registry")),
    "length": (length, ("mixing",)),
    "contest": (contest, ("contest",)),
    "to_loss": (losses, ("training-to-loss",)),
}


def draw(place: Path, into: Path) -> dict[str, str]:
    """Draw what was measured into a folder; what became of each plot."""
    into.mkdir(parents=True, exist_ok=True)
    told = {}
    for name in PLOTS:
        plot, sections = WAYS[name]
        found = {section: read(place, section) for section in sections}
        if missing := [section for section, measured in found.items() if measured is None]:
            told[name] = f"left out: {', '.join(missing)} not measured"
            continue
        with mpl.rc_context(STYLE):
            figure = plot(*(measured.raw for measured in found.values() if measured))
            path = into / f"{name}.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None})
        told[name] = str(path)
    return told


def _figure(panels: int, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(4.0 * panels + 2.4 * (panels == 1), height), layout="constrained")
    return figure, [figure.add_subplot(1, panels, place + 1) for place in range(panels)]


def _finished(figure: Figure, title: str, *panels: Axes) -> Figure:
    """A title; the panels begin at zero, have a legend and room for it."""
    figure.suptitle(title, fontsize="medium", fontweight="bold")
    for axes in panels:
        axes.set_ylim(0, axes.dataLim.y1 * 1.35)
        axes.legend()
    return figure


def main() -> None:
    """Draw, and say what was drawn."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="what the --quick runs left, beside their results"
    )
    parser.add_argument("--into", type=Path, help="a folder; docs/plots if not given")
    choose_device(parser)
    args = parser.parse_args()
    place = folder(quick=args.quick, device=args.device)
    into = args.into or (place / "plots" if args.quick or args.device != "cpu" else DRAWN)
    for name, what in draw(place, into).items():
        print(f"{name}: {what}")


if __name__ == "__main__":
    main()
