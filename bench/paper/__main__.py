"""The paper's comparison, one command: train and score every method on one frozen checkpoint.

Run: python -m bench.paper --base gpt2-mini --task e2e [--rows 400 --limit-inputs 40 --steps 60]
     python -m bench.paper --study low-data --task e2e
     python -m bench.paper --table

Each finished model is a line of build/bench/paper/results.jsonl and is not trained again; `--again` does.
"""

import argparse
import sys
import traceback
from pathlib import Path

from bench.paper import settings, studies, table
from bench.paper.host import Host, open_host
from bench.paper.job import BEAMS, Job
from bench.paper.records import PLACE, Record, Records
from bench.paper.tasks import TASKS, enough, load


def main() -> None:
    args = arguments()
    records = Records(args.into)
    if args.table:
        text = table.report(records.all())
        print(text)
        if args.write is None:
            draw(records, records.place / "plots")
        else:
            links = "\n".join(draw(records, args.write.parent / "plots", "paper-"))
            args.write.write_text(table.written(args.write.read_text(), f"{text}\n\n{links}".strip()))
        return
    train(args, records)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--base", default=settings.MINI, help="a carried base, a folder, or a name on the hub"
    )
    parser.add_argument("--device", help="of torch; cuda where there is one")
    parser.add_argument("--task", default="e2e", choices=TASKS)
    parser.add_argument("--study", default="main", choices=studies.STUDIES)
    parser.add_argument("--methods", help="names with commas; the study's own if not given")
    parser.add_argument(
        "--rows", type=_counts, help="training rows, with commas; the study's own if not given"
    )
    parser.add_argument("--samples", type=int, help="choices of rows for each number of rows")
    parser.add_argument("--seeds", type=int, help="trainings of each choice")
    parser.add_argument("--steps", type=int, help="updates of every method alike")
    parser.add_argument("--epochs", type=int, help="epochs of every method alike")
    parser.add_argument("--rate", type=float, help="learning rate instead of the settings'")
    parser.add_argument("--limit-inputs", type=int, help="scored inputs; all if not given")
    parser.add_argument("--decoding", default="greedy,beam5", help="of greedy,beam5")
    parser.add_argument("--into", type=Path, default=PLACE, help="folder of the results")
    parser.add_argument("--again", action="store_true", help="train finished models again")
    parser.add_argument(
        "--table", action="store_true", help="print the tables of what was run, draw its plots"
    )
    parser.add_argument(
        "--write",
        type=Path,
        help="with --table: a document that has a place for the tables; its plots go beside it",
    )
    parser.add_argument("--rescore", action="store_true", help="score kept texts again, say by a new metric")
    args = parser.parse_args()
    if args.steps is not None and args.epochs is not None:
        parser.error("give --steps or --epochs, not both")
    if unknown := set(filter(None, args.decoding.split(","))) - set(BEAMS):
        parser.error(f"--decoding {','.join(sorted(unknown))} is unknown; choose of {','.join(BEAMS)}")
    return args


def _counts(text: str) -> tuple[int, ...]:
    counts = tuple(int(part) for part in text.split(",") if part)
    if not counts or min(counts) < 1:
        raise argparse.ArgumentTypeError("give numbers of rows from 1 up, with commas in between")
    return counts


def train(args: argparse.Namespace, records: Records) -> None:
    """Run every job that has no record yet."""
    from bench.paper.fitting import Diverged  # noqa: PLC0415
    from bench.paper.run import run  # noqa: PLC0415 - `--table` trains nothing
    from trainer_worker.refusal import Refused  # noqa: PLC0415

    jobs = studies.jobs(args)
    task = load(args.task, extrapolate=args.study == "extrapolation")
    for rows, low in dict.fromkeys((job.rows, job.low) for job in jobs):
        try:
            enough(task, rows, low=low)
        except ValueError as error:
            sys.exit(str(error))
    host = open_host(args.base, args.device)
    keys = [job.key(host.base.name, host.base.fingerprint) for job in jobs]
    if args.rescore:
        rescore(host, dict(zip(keys, jobs, strict=True)), records)
        return
    failed = 0

    def one(key: str, asked: Job, told: str) -> bool:
        """Train a model unless it is there; whether another process is at it."""
        nonlocal failed
        with records.claim(key) as ours:
            before = records.decodings(key)  # now, since another process may have made it meanwhile
            if not ours or (not args.again and before is not None and set(asked.decodings) <= before):
                why = "finished before" if ours else "another process is at it"
                print(f"{told} {asked.method}: {why}", file=sys.stderr)
                return not ours
            try:
                record, texts = run(host, asked.also(before or ()))
            except (Diverged, Refused) as error:
                print(f"{told} {asked.method}: no model: {error}", file=sys.stderr)
                return False
            except Exception:  # noqa: BLE001 - hours of others may follow
                traceback.print_exc()
                failed += 1
                return False
            records.add(record, texts)
        tell(record, told)
        return False

    asked = [(key, job, f"{n}/{len(jobs)}") for n, (key, job) in enumerate(zip(keys, jobs, strict=True), 1)]
    away = [of for of in asked if one(*of)]
    away = [
        of for of in away if records.decodings(of[0]) is None and one(*of)
    ]  # it may have ended without a model
    print(table.report([record for record in records.all() if record["key"] in set(keys)]))
    if failed:
        sys.exit(f"{failed} of {len(jobs)} models failed; what is above says why")
    if away:
        sys.exit(
            f"{len(away)} of {len(jobs)} models are with other processes; run it again when these have ended"
        )


def rescore(host: Host, jobs: dict[str, Job], records: Records) -> None:
    """Score the kept texts of finished jobs, given by key, again; say of which they are gone."""
    from bench.paper.run import rescored  # noqa: PLC0415

    for record in records.all():
        if record["key"] not in jobs:
            continue
        try:
            texts = records.texts(record["key"])
        except FileNotFoundError:
            tell(record, "not scored again, its texts are gone:")
            continue
        again = rescored(host, jobs[record["key"]], record, texts)
        records.replace(again)
        tell(again, "scored again")


def tell(record: Record, what: str) -> None:
    """One line on a model, without its texts."""
    head = f"{what} {record['task']} {record['method']} rows {record['training_rows']} seed {record['seed']}"
    losses = f"held-out {record['held_out_loss']:.3f} (base {record['base_loss']:.3f})"
    shown = ", ".join(
        f"{decoding} BLEU {groups['all']['bleu']:.1f}" for decoding, groups in record["scores"].items()
    )
    print(
        f"{head}: {losses}, {record['updates']} updates, {record['seconds']:.0f} s; {shown}", file=sys.stderr
    )


def draw(records: Records, into: Path, mark: str = "") -> list[str]:
    """Plots of what is there, in a folder; their links in a document beside it."""
    from bench.paper import plots  # noqa: PLC0415 - needs matplotlib

    told = plots.draw(records.all(), into, mark)
    for name, what in told.items():
        print(f"{name}: {what}", file=sys.stderr)
    drawn = [name for name, what in told.items() if what.endswith(".svg")]
    return [f"![{name}]({into.name}/{name}.svg)" for name in drawn]


if __name__ == "__main__":
    main()
