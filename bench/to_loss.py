"""Time to the same held-out loss on carried datasets: ours with its defaults, PEFT's as its guide trains.

Each contestant in a process of its own; in every round, whose seed draws the rows and the start, they take turns on
the same rows. Loss is that of an evaluation file's rows, by which nobody stops or keeps a best. Of the two best
losses the worse is the one that both reach, and the time is that of the first look at which each was there.
"""

import statistics
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

from bench.process import Process
from bench.run import MAIN, Run
from bench.table import Row

BASE = "gpt2-mini"
DATASETS = ("e2e", "recipe_cook")  # not of the defaults' study, by whose sets our settings were chosen
EXAMPLES, SCORED, EVERY = 200, 60, 5  # rows drawn, rows scored at a look, updates between looks
EPOCHS, BATCH = 50, 16  # of PEFT's guide
OURS, SHORT, LONG = "ours", "PEFT, as many updates as ours", f"PEFT, {EPOCHS} epochs"
MOST = 0.9  # of the gain: the last of it is where a curve that is flat and noisy is late
_PATIENCE_S = 3600.0

Point = Sequence[float]  # updates, seconds, the processor's seconds, loss


class Reached(NamedTuple):
    """When both were at the same loss: seconds and the processor's seconds of either."""

    loss: float
    ours: tuple[float, float]
    theirs: tuple[float, float]


def measure(
    run: Run, datasets: Sequence[str] = DATASETS, examples: int = EXAMPLES
) -> tuple[list[Row], dict[str, Any]]:
    """All rounds on each dataset."""
    raw: dict[str, Any] = {}
    with ExitStack() as stack:
        own, peft = (
            stack.enter_context(Process(f"to loss {name}", MAIN, module, run.threads))
            for name, module in (("ours", "train_own_to_loss"), ("PEFT", "train_peft_to_loss"))
        )
        for process in (own, peft):
            process.ask("load", base=BASE, device=run.device)
        for dataset in datasets[:1] if run.quick else datasets:
            raw[dataset] = _dataset(run, own, peft, dataset, 40 if run.quick else examples)
    return [_row(dataset, found) for dataset, found in raw.items()], raw


def _dataset(run: Run, own: Process, peft: Process, dataset: str, examples: int) -> dict[str, Any]:
    work = {"dataset": dataset, "examples": examples, "scored": 8 if run.quick else SCORED, "every": EVERY}
    few = {**work, "examples": 40, "seed": 0, "updates": 2}
    first = own.ask("train", _PATIENCE_S, **few)
    peft.ask("train", _PATIENCE_S, **few)
    curves: dict[str, list[list[Point]]] = {OURS: [], SHORT: [], LONG: []}
    length: dict[str, int | None] = {OURS: 6 if run.quick else None, SHORT: None, LONG: None}
    rows: dict[int, int] = {}
    for seed in range(run.rounds):
        for name in _turns(seed):
            process = own if name == OURS else peft
            train = partial(process.ask, "train", _PATIENCE_S, **work, seed=seed, updates=length[name])
            given = run.referee.watched(train)
            if length[LONG] is None:  # the first of all is ours, whose plan says how long the others train
                length[SHORT] = given["planned"]
                length[LONG] = 12 if run.quick else EPOCHS * -(-given["rows"] // BATCH)
            rows.setdefault(seed, given["rows"])  # a draw with a prompt twice holds out another number
            assert (given["rows"], given["scored_tokens"]) == (rows[seed], first["scored_tokens"]), name
            curves[name].append(given["curve"])
            best = min(loss for *_, loss in given["curve"])
            run.say(
                f"  {dataset}, round {seed + 1}  {name:30} {given['curve'][-1][1]:6.1f} s  best {best:.4f}"
            )
    return {"curves": curves, "base_loss": first["base_loss"], "rows": rows[0]}


def _turns(seed: int) -> tuple[str, ...]:
    """Who goes first changes from round to round; in the first it is ours, whose plan says how long the others train."""
    names = (OURS, SHORT, LONG)
    return names[seed % 3 :] + names[: seed % 3]


def both_reach(
    ours: Sequence[Point], theirs: Sequence[Point], start: float = 0.0, share: float = 1.0
) -> Reached:
    """The lowest loss that both curves reach, or `share` of the way to it from `start`, and when."""
    lowest = max(min(point[3] for point in curve) for curve in (ours, theirs))
    loss = lowest + (1 - share) * max(0.0, start - lowest)
    first, second = (
        next((point[1], point[2]) for point in curve if point[3] <= loss) for curve in (ours, theirs)
    )
    return Reached(loss, first, second)


def _row(dataset: str, found: dict[str, Any]) -> Row:
    """Against the PEFT that does better against ours; the other stands beside it."""
    curves = found["curves"]
    ratios, told = {}, []
    for name in (SHORT, LONG):
        met = [both_reach(*pair) for pair in zip(curves[OURS], curves[name], strict=True)]
        wall, processor = (
            statistics.median(one.ours[clock] / one.theirs[clock] for one in met) for clock in (0, 1)
        )
        ratios[name] = wall
        early = statistics.median(
            one.ours[0] / one.theirs[0]
            for one in (
                both_reach(*pair, found["base_loss"], MOST)
                for pair in zip(curves[OURS], curves[name], strict=True)
            )
        )
        ours, theirs, loss = (
            statistics.median(figures)
            for figures in zip(*((one.ours[0], one.theirs[0], one.loss) for one in met), strict=True)
        )
        told.append(
            f"{name}: {wall:.2g}x, {theirs:.1f} s to {loss:.3f}, ours {ours:.1f} s (processor {processor:.2g}x; "
            f"to {MOST:.0%} of the way there {early:.2g}x); "
            f"its best {_best(curves[name]):.3f} in {_whole(curves[name]):.0f} s"
        )
    return Row(
        f"wall time to the same held-out loss, {dataset}, against PEFT's",
        f"best {_best(curves[OURS]):.3f} in {_whole(curves[OURS]):.0f} s; {found['rows']} rows, "
        f"the base alone {found['base_loss']:.3f}; {len(curves[OURS])} rounds",
        "; ".join(told),
        max(ratios.values()),
        at_most=0.5,
    )


def _best(curves: Sequence[Sequence[Point]]) -> float:
    return statistics.median(min(point[3] for point in curve) for curve in curves)


def _whole(curves: Sequence[Sequence[Point]]) -> float:
    return statistics.median(curve[-1][1] for curve in curves)
