"""The study of the trainer's defaults: train, keep, and report into docs/defaults.md.

Run: python -m bench.defaults [--part rate,m --datasets quiz_master --seeds 2 --budget 10 --workers 2] [--quick]
     python -m bench.defaults --report

Every finished run is a line of build/bench/defaults/results.jsonl and is not made again, so that the study may be made
in pieces. Settings are judged by the loss on evaluation files, which no run stops or keeps its best by; they are
chosen on one half of the datasets and reported on the other.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from bench.defaults.results import OtherBase, Results
from bench.defaults.study import Study
from bench.defaults.table import report, written
from bench.defaults.trials import DATASETS, PARTS, SHORT, trials
from bench.plot_names import DRAWN
from bench.process import BUILD, ROOT, ContestantError
from bench.results import names
from bench.whole import whole

DOCUMENT = ROOT / "docs" / "defaults.md"


def main() -> None:
    args = arguments()
    results = Results(args.into / "results.jsonl")
    try:
        tell(args, results) if args.report else make(args, results)
    except (OtherBase, ContestantError) as error:
        sys.exit(f"bench.defaults: {error}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--part", type=partial(names, known=PARTS), default=PARTS, help=f"of {','.join(PARTS)}"
    )
    parser.add_argument(
        "--datasets",
        type=partial(names, known=DATASETS),
        default=SHORT,
        help="those of short rows if not given",
    )
    parser.add_argument("--seeds", type=int, default=1, help="choices of examples and trainings")
    parser.add_argument("--budget", type=float, default=40.0, help="minutes after which no run begins")
    parser.add_argument("--workers", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--base", default="gpt2-mini", help="a carried base, a folder, or a name on the hub")
    parser.add_argument("--device", help="of torch")
    parser.add_argument("--into", type=Path, help="folder of the results")
    parser.add_argument(
        "--quick", action="store_true", help="30 examples and 4 updates a run: shows that it works"
    )
    parser.add_argument(
        "--report", action="store_true", help="write tables and pictures; --quick: beside the results"
    )
    args = parser.parse_args()
    if min(args.seeds, args.workers) < 1:
        parser.error("--seeds and --workers are 1 at the least")
    args.into = args.into or BUILD / ("defaults-quick" if args.quick else "defaults")
    return args


def make(args: argparse.Namespace, results: Results) -> None:
    """Run what is missing."""
    load = {"base": args.base, "device": args.device, "quick": args.quick}
    asked = trials(args.part, args.datasets, args.seeds)
    Study(results, load, args.workers).make(asked, args.budget)


def tell(args: argparse.Namespace, results: Results) -> None:
    """Write the tables and the pictures."""
    from bench.defaults.plots import TITLES, draw  # noqa: PLC0415 - needs matplotlib

    results.require()
    found = results.all()
    drawn = draw(found, args.into / "plots" if args.quick else DRAWN)
    print(report(found))
    for name, path in drawn.items():
        print(f"{name}: {path or 'left out, not run'}", file=sys.stderr)
    if not args.quick:
        shown = {name: f"![{TITLES[name]}](plots/{path.name})" for name, path in drawn.items() if path}
        with whole(DOCUMENT) as making:
            making.write_text(written(DOCUMENT.read_text(), report(found, shown)))


if __name__ == "__main__":
    main()
