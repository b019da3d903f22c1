"""Training: one step beside PEFT's, many jobs in one pass beside one after another, and the time to the same loss.

Run: python -m bench.training [--quick] [--rows steps,to-loss] [--rounds 4] [--device cuda] [--datasets a,b --examples 400]
"""

import argparse
import statistics
from functools import partial
from typing import Any

from bench import to_loss
from bench.process import Process
from bench.results import TRAINING, choose_device, choose_rows, folder
from bench.run import MAIN, Run
from bench.sections import Planned, end, measure_all
from bench.table import Row, paired
from trainer_worker.settings import WorkerSettings

ROWS, TOKENS = 8, 128
COUNTS = (1, 2, 4, 8, 16, 32)
ROUNDS = {"steps": 4, "to-loss": 1}  # if not told
# What each job has in an update: the name, its rows, their tokens, and how many jobs there are at most.
WORK = (
    ("one row of 32 tokens", 1, 32, 32),
    ("one row of 128 tokens", 1, 128, 32),
    ("the default batch, 4 rows of 64", 4, 64, 32),
)
UPDATES = 240  # of a job of 200 rows and less, by the defaults
REPORTED_ROUNDS = 2  # of what no target is set for: a round of the default batch takes a minute


def main() -> None:
    """Measure, keep, and print the table."""
    args = arguments()
    sections = {}
    for name in args.rows:
        run = Run(args.quick, 1 if args.quick else args.rounds or ROUNDS[name], device=args.device)
        if name == "steps":
            way = partial(measure, run)
        else:
            way = partial(to_loss.measure, run, args.datasets.split(","), args.examples)
        sections[name] = Planned(TRAINING[name], way, run.referee)
    lines, failed = measure_all(sections, folder(quick=args.quick, device=args.device), args.device)
    print("\n".join(lines))
    end(failed, quick=args.quick)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, tuple(TRAINING))
    choose_device(parser)
    parser.add_argument("--rounds", type=int, help="timed rounds; 4 of steps and 1 of to-loss if not given")
    parser.add_argument("--datasets", default=",".join(to_loss.DATASETS), help="of to-loss")
    parser.add_argument("--examples", type=int, default=to_loss.EXAMPLES, help="rows of each, of to-loss")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, one round: shows that it works")
    return parser.parse_args()


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """A step, and many jobs."""
    with run.start("training", MAIN, "train_own") as own:
        with run.start("PEFT training", MAIN, "train_peft") as peft:
            rows, raw = _step(run, own, peft)
        more, raw_jobs = _jobs(run, own)
    return rows + more, raw | raw_jobs


def _step(run: Run, own: Process, peft: Process) -> tuple[list[Row], dict[str, Any]]:
    rows, tokens = (2, 16) if run.quick else (ROWS, TOKENS)
    turns = {
        "ours": partial(own.ask, "train", jobs=1, rows=rows, tokens=tokens, form="mlp", together=True),
        "PEFT": partial(peft.ask, "train", rows=rows, tokens=tokens, dropout=False),
        "PEFT, dropout": partial(peft.ask, "train", rows=rows, tokens=tokens, dropout=True),
    }
    answers = run.referee.alternate(turns, run.rounds)
    took = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
    memory = {name: max(answer["memory"] for answer in given) for name, given in answers.items()}
    what = f"{rows} rows of {tokens} tokens, MLP"
    ratio = statistics.median(paired(took["ours"], took["PEFT"]))
    lines = [
        Row(
            f"training step, {what}, against PEFT's",
            f"{statistics.median(took['ours']):.3g} s",
            f"PEFT {statistics.median(took['PEFT']):.3g} s, in train mode with the model's dropout "
            f"{statistics.median(took['PEFT, dropout']):.3g} s",
            ratio,
            at_most=0.85,
        ),
        Row(
            f"highest memory above the base, {what}, against PEFT's",
            f"{memory['ours'] / 1e6:.0f} MB",
            f"PEFT {memory['PEFT'] / 1e6:.0f} MB, with dropout {memory['PEFT, dropout'] / 1e6:.0f} MB",
            memory["ours"] / memory["PEFT"],
            at_most=0.4,
        ),
    ]
    return lines, {"step": {"seconds": took, "memory": memory}}


def _jobs(run: Run, own: Process) -> tuple[list[Row], dict[str, Any]]:
    """Each number of jobs together and one after another, in turn."""
    raw: dict[str, Any] = {}
    rows = []
    counts = (1, 2) if run.quick else COUNTS
    for name, each, tokens, most_jobs in WORK if not run.quick else WORK[:1]:
        found = {}
        at_least = 1.7 if (each, tokens) == (1, 32) else None
        rounds = run.rounds if at_least else min(run.rounds, REPORTED_ROUNDS)
        for count in (count for count in counts if count <= most_jobs):
            work = {"jobs": count, "rows": each, "tokens": tokens, "form": "direct"}
            turns = {
                side: partial(own.ask, "train", **work, together=side == "together")
                for side in ("together", "apart")
            }
            answers = run.referee.alternate(turns, rounds)
            took = {side: [answer["seconds"] for answer in given] for side, given in answers.items()}
            memory = {side: max(answer["memory"] for answer in given) for side, given in answers.items()}
            gain = statistics.median(paired(took["apart"], took["together"]))
            found[str(count)] = {"seconds": took, "memory": memory, "gain": gain}
        raw[name] = found
        most = max(found.values(), key=lambda one: one["gain"])
        rows.append(
            Row(
                f"jobs trained together against one after another, {name}, the number that gains most "
                f"(a worker takes {WorkerSettings().worker_joint_jobs} if not told)",
                "; ".join(f"{count} jobs {one['gain']:.2f}x" for count, one in found.items()),
                f"jobs of {UPDATES} updates an hour, together / apart: "
                + "; ".join(
                    " / ".join(_an_hour(int(count), one["seconds"][side]) for side in ("together", "apart"))
                    for count, one in found.items()
                )
                + "; highest memory above the base: "
                + "; ".join(
                    f"{one['memory']['together'] / 1e6:.0f} / {one['memory']['apart'] / 1e6:.0f} MB"
                    for one in found.values()
                ),
                most["gain"],
                at_least=at_least,
            )
        )
    return rows, {"jobs": raw}


def _an_hour(jobs: int, seconds: list[float]) -> str:
    """Jobs that end in an hour, by the seconds of one update of each of them."""
    return f"{3600 * jobs / (UPDATES * statistics.median(seconds)):,.0f}"


if __name__ == "__main__":
    main()
