"""Rows that are not alike: ragged lengths in one batch, and a long prompt that arrives among streams."""

import random
import statistics
from functools import partial
from typing import Any

from bench.pace import decode_steps, longest_gap_s, step_s
from bench.process import Process
from bench.run import Run
from bench.table import Row, paired
from bench.workload import Workload, uniform


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """Both."""
    with run.engine("streams", rows=40) as engine:
        ragged, ragged_raw = _ragged(run, engine)
        gap, gap_raw = _gap(run, engine)
    return [*ragged, gap], {"ragged": ragged_raw, "gap": gap_raw}


def _ragged(run: Run, engine: Process) -> tuple[list[Row], dict[str, Any]]:
    count, shortest, longest, new = (4, 4, 32, 8) if run.quick else (32, 20, 600, 64)
    lengths = [round(shortest + (longest - shortest) * i / (count - 1)) for i in range(count)]
    mean = sum(lengths) // count
    alike = [mean + (i < sum(lengths) - mean * count) for i in range(count)]
    random.Random(2).shuffle(lengths)
    turns = {
        name: partial(engine.ask, "run", workload=Workload(tuple(prompts), new, 10, count))
        for name, prompts in (("ragged", lengths), ("uniform", alike))
    }
    answers = run.referee.alternate(turns, 1 if run.quick else 3)
    whole = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
    steps = {name: [step_s(answer["times"]) for answer in given] for name, given in answers.items()}
    what = f"prompts of {shortest} to {longest} tokens against {count} of the mean"
    rows = [
        Row(
            f"{what}, {title}",
            f"{statistics.median(took['ragged']):.3g} s",
            f"uniform {statistics.median(took['uniform']):.3g} s",
            statistics.median(paired(took["uniform"], took["ragged"])),
            at_least=0.9,
        )
        for title, took in (("whole run", whole), ("decode steps", steps))
    ]
    return rows, {"seconds": whole, "steps": steps}


def _gap(run: Run, engine: Process) -> tuple[Row, dict[str, Any]]:
    count, prompt, new, long = (4, 8, 600, 60) if run.quick else (32, 64, 64, 900)
    streams, arriving = uniform(count, prompt, new, m=10), uniform(1, long, 4, m=10)
    turn = partial(engine.ask, "arrival", workload=streams, arriving=arriving.lengths[0], after=8)
    found = run.referee.alternate({"arrival": turn}, 1 if run.quick else 3)["arrival"]
    gaps, steps = [], []
    for answer in found:
        before = [[at for at in row if at < answer["came"]] for row in answer["times"]]
        steps.append(statistics.median(step.seconds for step in decode_steps(before)))
        gaps.append(longest_gap_s(answer["times"], answer["came"], answer["first"]))
    ratios = paired(gaps, steps)
    row = Row(
        f"longest gap between tokens of {count} streams while a prompt of {long} arrives",
        f"{max(gaps) * 1e3:.0f} ms, the longest of {len(gaps)} arrivals",
        f"step {statistics.median(steps) * 1e3:.1f} ms; first token after "
        f"{statistics.median(a['first'] - a['came'] for a in found):.2f} s",
        max(ratios),
        at_most=4,
        unit=" steps",
    )
    return row, {"gaps": gaps, "steps": steps}
