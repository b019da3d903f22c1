"""The engine's bench: every row of docs/performance.md that needs no service.

Run: python -m bench [--quick] [--rows contest,mixing,...] [--rounds 4] [--peers ...]
"""

import argparse
import sys
import time
import traceback
from importlib import import_module

from bench.contest import entries
from bench.results import ENGINE as SECTIONS
from bench.results import choose_rows, folder, keep
from bench.run import Run
from bench.table import HEAD


def main() -> None:
    """Measure the sections that were asked for, keep each as it ends, and print their table."""
    args = arguments()
    out = folder(quick=args.quick)
    run = Run(args.quick, 1 if args.quick else args.rounds, args.peers)
    lines, failed, referee = [HEAD], [], run.referee
    for name in args.rows:
        run.say(f"== {name}")
        start, kept = time.perf_counter(), referee.kept_disturbed
        try:
            rows, raw = import_module(f"bench.{name}").measure(run)
        except Exception:  # noqa: BLE001 - the other sections are measured all the same
            traceback.print_exc()
            failed.append(name)
            continue
        seconds = time.perf_counter() - start
        lines += keep(out, name, rows, raw, seconds, referee.kept_disturbed - kept)
        run.say(f"== {name}: {seconds:.0f} s")
    print("\n".join(lines))
    print(
        f"\n{run.threads} threads; {referee.turns} turns, {referee.rejected} rejected as disturbed and repeated, "
        f"{referee.kept_disturbed} kept though disturbed"
    )
    if args.quick:
        print("--quick shows that the bench works; its figures mean nothing")
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, SECTIONS)
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds of a contest")
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
