"""The engine's bench: every row of docs/performance.md that needs no service.

Run: python -m bench [--quick] [--rows contest,prefixes,...] [--rounds 4] [--peers ...]
"""

import argparse
import json
import time
from importlib import import_module

from bench.process import BUILD
from bench.run import Run
from bench.table import HEAD

SECTIONS = ("contest", "mixing", "steps", "streams", "memory")


def main() -> None:
    """Measure the sections that were asked for; print the table of all that was measured so far."""
    args = arguments()
    out = BUILD / ("quick" if args.quick else "results")
    out.mkdir(parents=True, exist_ok=True)
    run = Run(args.quick, 1 if args.quick else args.rounds, args.peers)
    lines = [HEAD]
    for name in args.rows:
        run.say(f"== {name}")
        start = time.perf_counter()
        rows, raw = import_module(f"bench.{name}").measure(run)
        table = [row.markdown() for row in rows]
        found = {"rows": table, "seconds": time.perf_counter() - start, "raw": raw}
        (out / f"{name}.json").write_text(json.dumps(found, indent=1))
        lines += table
        run.say(f"== {name}: {found['seconds']:.0f} s")
    (out / "table.md").write_text("\n".join(lines) + "\n")
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
    parser.add_argument(
        "--rows", type=_names, default=SECTIONS, help=f"of {','.join(SECTIONS)}; all if not given"
    )
    parser.add_argument("--rounds", type=int, default=4, help="timed rounds of a contest")
    parser.add_argument(
        "--peers", type=lambda text: frozenset(_names(text)), help="parts of names; all if not given"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round: shows that it works")
    return parser.parse_args()


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


if __name__ == "__main__":
    main()
