"""The engine's bench: every row of docs/performance.md that needs no service.

Run: python -m bench [--quick] [--rows contest,mixing,...] [--rounds 4] [--peers ...]
"""

import argparse
import time
from importlib import import_module

from bench.results import ENGINE as SECTIONS
from bench.results import choose_rows, folder, keep
from bench.run import Run
from bench.table import HEAD


def main() -> None:
    """Measure the sections that were asked for, keep each as it ends, and print their table."""
    args = arguments()
    out = folder(quick=args.quick)
    run = Run(args.quick, 1 if args.quick else args.rounds, args.peers)
    lines = [HEAD]
    for name in args.rows:
        run.say(f"== {name}")
        start = time.perf_counter()
        rows, raw = import_module(f"bench.{name}").measure(run)
        seconds = time.perf_counter() - start
        lines += keep(out, name, rows, raw, seconds)
        run.say(f"== {name}: {seconds:.0f} s")
    referee = run.referee
    print("\n".join(lines))
    print(
        f"\n{run.threads} threads; {referee.turns} turns, {referee.rejected} rejected as disturbed and repeated, "
        f"{referee.kept_disturbed} kept though disturbed"
    )
    if args.quick:
        print("--quick shows that the bench works; its figures mean nothing")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, SECTIONS)
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds of a contest")
    parser.add_argument(
        "--peers",
        type=lambda text: frozenset(filter(None, text.split(","))),
        help="parts of names; all if not given",
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round: shows that it works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
