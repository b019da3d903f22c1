"""The study as tables: each setting's distance from the middle, on the half that chooses and on the half that reports."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bench.defaults.results import Pair, Result, pairs, runs
from bench.defaults.trials import AROUND, BEFORE, HALVES, MIDDLE, SIZES, Settings
from trainer_worker.auto import AUTOS

TITLES = {
    "rate": "Learning rate of the direct form",
    "batch": "Rows of an update, at as many passes over the rows",
    "epochs": "Updates, that is passes over the rows",
    "m": "Positions of the prefix",
    "form": "Form",
    "init": "What the prefix starts from",
    "dropout": "Dropout",
    "auto": "What the product takes by itself",
}
STARTS = {
    "words": "the product's words",
    "own": "words of the dataset's own",
    "foreign": "irrelevant words",
    "random": "random values",
}
MARKS = re.compile(r"(<!-- defaults: (?P<what>tables|autos) -->)\n.*?(<!-- /defaults -->)", re.DOTALL)
NOTHING = "Nothing was run yet: python -m bench.defaults"


@dataclass(frozen=True, slots=True)
class Line:
    """One setting of a part: its runs beside the middle's, by half; those of the middle itself differ by nothing."""

    label: str
    settings: Settings | None
    halves: dict[str, list[Pair]]

    def differences(self, half: str) -> list[float]:
        """Loss less the middle's, of each dataset and seed, in nats a token."""
        return [ours["loss"] - middle["loss"] for ours, middle in self.halves[half]]


def report(results: Sequence[Result], pictures: Mapping[str, str] | None = None) -> str:
    """All tables as markdown; says so where there is nothing.

    Args:
        results: of one base.
        pictures: by name, as they are to be shown behind their tables.
    """
    if not results:
        return NOTHING
    shown = pictures or {}
    tables = [_head(results)]
    for examples, levels in AROUND.items():
        for part in levels:
            found = lines(results, part, examples)
            if len(found) > 1:
                tables.append(_part(found, part, examples))
        tables.append(shown.get(f"defaults-{examples}", ""))
    return "\n\n".join(filter(None, [*tables, *_sizes(results), shown.get("defaults-size", "")]))


def written(document: str, text: str) -> str:
    """The document with these tables, and with what auto means, between its marks.

    Raises:
        ValueError: it has not both marks.
    """
    new = {"tables": text, "autos": meaning()}
    if {found["what"] for found in MARKS.finditer(document)} != new.keys():
        raise ValueError(
            "the document needs <!-- defaults: autos --> and <!-- defaults: tables -->, each with its end"
        )
    return MARKS.sub(lambda found: f"{found[1]}\n\n{new[found['what']]}\n\n{found[3]}", document)


def meaning() -> str:
    """What auto means, as a table."""
    told = [
        "| training rows | positions | form | start | learning rate | rows of an update | updates | dropout |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for auto in AUTOS:
        rows = f"up to {auto.rows:,}" if math.isfinite(auto.rows) else "more" if len(AUTOS) > 1 else "all"
        rate = f"{auto.direct:g} (MLP {auto.mlp:g})"
        updates = f"{auto.epochs} passes over the rows, {auto.fewest} to {auto.most}"
        cells = (rows, auto.m, auto.form, auto.init, rate, auto.batch, updates, f"{auto.dropout:g}")
        told.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(told)


def lines(results: Sequence[Result], part: str, examples: int) -> list[Line]:
    """The settings of a part of which there are runs on both halves, the middle among them, in order."""
    found = []
    for settings in (MIDDLE, *AROUND[examples].get(part, ())):
        both = pairs(results, examples, settings)
        halves = {half: [both[at] for at in sorted(both) if at[0] in HALVES[half]] for half in HALVES}
        if all(halves.values()):
            found.append(Line(_label(part, examples, settings), settings, halves))
    return sorted(found, key=lambda line: _place(part, line.settings))


def chosen(found: Sequence[Line]) -> Line:
    """The setting with the lowest mean on the half that chooses; the middle if none is lower."""
    return min(
        found, key=lambda line: (statistics.mean(line.differences("choosing")), line.settings != MIDDLE)
    )


def clear(line: Line) -> bool:
    """Whether a setting has a lower loss than the middle on every dataset and seed of both halves."""
    return all(difference < 0 for half in HALVES for difference in line.differences(half))


def _place(part: str, settings: Settings | None) -> tuple[object, ...]:
    if part == "auto" or settings is None:
        return ((None, BEFORE, MIDDLE).index(settings),)
    if part == "form":
        return settings.form, settings.rate
    if part == "init":
        return (list(STARTS).index(settings.start),)
    return (getattr(settings, {"epochs": "updates"}.get(part, part)),)


def _label(part: str, examples: int, settings: Settings | None) -> str:
    if settings is None:
        return "now"
    if part == "auto":
        return "before there was a study" if settings == BEFORE else "the middle"
    if part == "epochs":
        passes = settings.updates * settings.batch / (0.9 * examples)
        return f"{settings.updates} updates, {passes:.2g} passes"
    if part == "form":
        return "direct" if settings.form == "direct" else f"MLP, learning rate {settings.rate:g}"
    return STARTS[settings.start] if part == "init" else f"{getattr(settings, part):g}"


def _head(results: Sequence[Result]) -> str:
    sides = {
        half: ", ".join(sorted({r["dataset"] for r in results if r["dataset"] in names}))
        for half, names in HALVES.items()
    }
    seeds = sorted({r["seed"] for r in results})
    first, refused = results[0], sum("refused" in r for r in results)
    return (
        f"{len(results)} runs on {first['base']} (`{first['fingerprint'][:12]}`), seeds {', '.join(map(str, seeds))}. "
        f"Chosen on {sides['choosing']}; reported on {sides['reporting']}."
        + (f" Diverged: {refused}." if refused else "")
    )


def _part(found: Sequence[Line], part: str, examples: int) -> str:
    best = chosen(found)
    told = [
        f"**{TITLES[part]}, {examples} examples**",
        "",
        "| | choosing | lower in | reporting | lower in | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for line in found:
        name = f"**{line.label}**" if line is best else line.label
        if line.settings == MIDDLE:
            cells = ["middle", "", "middle", ""]
        else:
            cells = [cell for half in HALVES for cell in (_mean(line.differences(half)), _lower(line, half))]
        seconds = statistics.mean(ours["seconds"] for both in line.halves.values() for ours, _ in both)
        told.append(f"| {' | '.join([name, *cells, f'{seconds:.0f}'])} |")
    return "\n".join([*told, "", _verdict(best)])


def _verdict(best: Line) -> str:
    if best.settings == MIDDLE:
        return "No setting is better on the half that chooses: the middle stays."
    if clear(best):
        return f"Clear: {best.label} is better than the middle in every run of both halves."
    return f"Not clear: {best.label} is not better than the middle in every run of both halves."


def _lower(line: Line, half: str) -> str:
    found = line.differences(half)
    return f"{sum(difference < 0 for difference in found)} of {len(found)}"


def _mean(found: Sequence[float]) -> str:
    shown = f"{statistics.mean(found):+.3f}"
    return shown if len(found) < 2 else f"{shown} ± {statistics.stdev(found):.3f}"


def _sizes(results: Sequence[Result]) -> list[str]:
    """Losses by the number of examples: with the middle's settings, and with what the product takes by itself."""
    tables = []
    for title, settings in (
        ("The middle's settings by number of examples", MIDDLE),
        ("What the product takes by itself, by number of examples", None),
    ):
        of_size = {size: runs(results, size, settings) for size in SIZES}
        datasets = sorted({dataset for found in of_size.values() for dataset, _ in found})
        if not datasets:
            continue
        told = [
            f"**{title}**: loss, and seconds of a run",
            "",
            f"| dataset | base | {' | '.join(str(size or 'all') for size in SIZES)} |",
            "|---|---|" + "---|" * len(SIZES),
        ]
        for dataset in datasets:
            some = [
                [run for (name, _), run in found.items() if name == dataset] for found in of_size.values()
            ]
            base = next(run["base_loss"] for same in some for run in same)
            told.append(f"| {dataset} | {base:.3f} | {' | '.join(_cell(same) for same in some)} |")
        tables.append("\n".join(told))
    return tables


def _cell(same: Sequence[Result]) -> str:
    if not same:
        return "-"
    loss, seconds = (statistics.mean(run[name] for run in same) for name in ("loss", "seconds"))
    return f"{loss:.3f} ({seconds:.0f} s)"
