"""The engine's bench: every row of docs/performance.md that needs no service.

Run: python -m bench [--quick] [--rows contest,mixing,...] [--rounds 6] [--peers ...] [--device cuda]
"""

import argparse
from functools import partial
from importlib import import_module
from typing import Any

from bench.contest import entries
from bench.results import ENGINE, choose_device, choose_rows, folder
from bench.run import Run
from bench.sections import Planned, end, measure_all
from bench.table import Row


def main() -> None:
    """Measure the sections that were asked for, keep each as it ends, and print their table."""
    args = arguments()
    run = Run(args.quick, 1 if args.quick else args.rounds, args.peers, args.device)
    sections = {name: Planned(name, partial(_measured, name, run), run.referee) for name in args.rows}
    lines, failed = measure_all(sections, folder(quick=args.quick, device=args.device), args.device)
    referee = run.referee
    print("\n".join(lines))
    print(
        f"\n{run.threads} threads; {referee.turns} turns, {referee.rejected} rejected as disturbed and repeated, "
        f"{referee.kept_disturbed} kept though disturbed"
    )
    end(failed, quick=args.quick)


def _measured(name: str, run: Run) -> tuple[list[Row], dict[str, Any]]:
    """A section's module is loaded when its turn comes: one that cannot be loaded stops no other."""
    rows, raw = import_module(f"bench.{name}").measure(run)
    return rows, raw


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, ENGINE)
    choose_device(parser)
    parser.add_argument("--rounds", type=int, default=6, help="timed rounds of a contest")
    parser.add_argument(
        "--peers",
        type=lambda text: frozenset(filter(None, text.split(","))),
        help="parts of names, or none; all if not given",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round: shows that it works")
    args = parser.parse_args()
    known = ", ".join(entries(Run(quick=True, rounds=1))).lower() + ", none"
    if unknown := [peer for peer in args.peers or () if peer.lower() not in known]:
        parser.error(f"--peers: no contestant's name has {', '.join(unknown)} in it; there are {known}")
    return args


if __name__ == "__main__":
    main()
