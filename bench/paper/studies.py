"""Which models each study trains: the paper's table 1 and its sections 6.3, 6.4, 7.2 and 7.4.

| study | the paper | what varies |
|---|---|---|
| main | tables 1 and 4 | methods |
| low-data | 6.3, figure 3 | 50, 100, 200, 500 rows; 5 samples of rows, 2 seeds each; prefix and fine-tuning |
| extrapolation | 6.4 | WebNLG's categories: trained on seven, scored on these and on three others |
| length | 7.2, figure 4 | positions of the prefix |
| init | 7.4, figure 5 | what the prefix begins with, in low data |
| rates | none | learning rates, by held-out loss alone: nothing is written or scored |
"""

import argparse
from collections.abc import Iterator
from itertools import product

from bench.paper.job import Job
from bench.paper.settings import METHODS, UNTRAINED, kind_of

STUDIES = ("main", "low-data", "extrapolation", "length", "init", "rates")
LENGTHS = {"scitldr": (1, 5, 10, 20, 50, 100, 200)}
TABLE_LENGTHS = (1, 2, 5, 10, 20, 40)
LOW = (50, 100, 200, 500)
# The paper's figure 5; the relevant words are for its two kinds of task.
IRRELEVANT = ("elephant", "divide", "active")
RELEVANT = {
    "scitldr": ("summarize", "summarization"),
    "": ("table-to-text:", "beautiful restaurant sentence"),
}
# Learning rates that are tried: decades and their thirds, around where each kind of method learns at all.
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)
TRIED = {
    "fine-tuning": (1e-4, 3e-3),
    "ft-top2": (1e-3, 1e-2),
    "adapter-0.1": (3e-3, 1e-1),
    "adapter-3": (1e-3, 3e-2),
}
TRIED_KEYS = (3e-2, 1.0)  # of prefixes, infixes and soft prompts


def jobs(args: argparse.Namespace) -> list[Job]:
    """The models of a study at the sizes asked for, those without training once."""
    found = []
    for job in _WAYS[args.study](args):
        if job.method in UNTRAINED and job.seed:
            continue
        found.append(job)
    return found


def _methods(args: argparse.Namespace, default: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(filter(None, args.methods.split(","))) if args.methods else default


def _jobs(
    args: argparse.Namespace,
    methods: tuple[str, ...],
    rows: tuple[int | None, ...] = (None,),
    samples: int = 1,
    seeds: int = 1,
) -> Iterator[Job]:
    """Rows, samples and seeds as asked for, else the study's own."""
    sizes = args.rows or rows
    for size, sample, seed, method in product(
        sizes, range(args.samples or samples), range(args.seeds or seeds), methods
    ):
        yield Job(
            study=args.study,
            task=args.task,
            method=method,
            rows=size,
            sample=sample,
            seed=seed,
            steps=args.steps,
            epochs=args.epochs,
            rate=args.rate,
            limit_inputs=args.limit_inputs,
            decodings=tuple(filter(None, args.decoding.split(","))),
        )


def _main(args: argparse.Namespace) -> Iterator[Job]:
    return _jobs(args, _methods(args, METHODS), seeds=3)


def _low_data(args: argparse.Namespace) -> Iterator[Job]:
    return _jobs(args, _methods(args, ("prefix", "fine-tuning")), LOW, samples=5, seeds=2)


def _extrapolation(args: argparse.Namespace) -> Iterator[Job]:
    default = ("base", "prefix", "adapter-0.1", "adapter-3", "ft-top2", "fine-tuning")
    return _jobs(args, _methods(args, default), seeds=3)


def _length(args: argparse.Namespace) -> Iterator[Job]:
    lengths = LENGTHS.get(args.task, TABLE_LENGTHS)
    return _jobs(args, _methods(args, tuple(f"prefix-{m}" for m in lengths)), seeds=3)


def _init(args: argparse.Namespace) -> Iterator[Job]:
    starts = [("uniform", None), ("random", None)]
    starts += [("words", words) for words in (*IRRELEVANT, *RELEVANT.get(args.task, RELEVANT[""]))]
    for job in _jobs(args, _methods(args, ("prefix",)), (100,), samples=5, seeds=2):
        for start, words in starts:
            yield job.with_start(start, words)


def _rates(args: argparse.Namespace) -> Iterator[Job]:
    default = tuple(method for method in METHODS if method not in UNTRAINED and kind_of(method) != "search")
    for job in _jobs(args, _methods(args, default)):
        low, high = TRIED.get(job.method, TRIED_KEYS)
        for rate in (args.rate,) if args.rate is not None else RATES:
            if args.rate is not None or low <= rate <= high:
                yield job.choosing(rate)


_WAYS = {
    "main": _main,
    "low-data": _low_data,
    "extrapolation": _extrapolation,
    "length": _length,
    "init": _init,
    "rates": _rates,
}
