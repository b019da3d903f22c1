"""What prefixes cost: many against one, against none, by their length and number; what shared reads gain."""

import statistics
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import bound, machine
from bench.contestant import Missing
from bench.pace import decode_steps, step_s
from bench.process import ContestantError, Process
from bench.run import Run
from bench.table import Row, interval, paired
from bench.workload import uniform

LENGTHS = (0, 10, 50, 200, 512)
COUNTS = (1, 2, 4, 8, 16, 32)
PROMPT, NEW = 64, 16
ROUNDS = 15  # of what is close to one
DISTINCT, SHARED, NONE = "distinct prefixes", "one shared prefix", "no prefix"


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """All; the engine runs with shared reads off but where they are what is measured."""
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    pool = 3 << 30  # 32 prefixes of every length stay resident
    machines = [machine.measure(quick=run.quick, device=run.device)]
    with ExitStack() as stack:
        engine = stack.enter_context(run.engine("mixing", rows=32, pool_bytes=pool, shared_reads=False))
        for part in (_many_against_one, _by_length, _by_count):
            part_rows, part_raw = part(run, engine, machines)
            rows += part_rows
            raw |= part_raw
        shared_rows, shared_raw = _shared_reads(run, engine, stack, pool)
    return rows + shared_rows, raw | shared_raw


def _requests(run: Run) -> int:
    return 4 if run.quick else 32


def _many_against_one(run: Run, engine: Process, _: list[bound.Machine]) -> tuple[list[Row], dict[str, Any]]:
    count, m = _requests(run), 10
    workloads = {
        DISTINCT: uniform(count, PROMPT, NEW, m=m),
        SHARED: uniform(count, PROMPT, NEW, m=m, prefixes=1),
        NONE: uniform(count, PROMPT + m, NEW),
    }
    turns = {name: partial(engine.ask, "run", workload=workload) for name, workload in workloads.items()}
    answers = run.referee.alternate(turns, 2 if run.quick else ROUNDS)
    whole = {name: [answer["seconds"] for answer in given] for name, given in answers.items()}
    steps = {name: [step_s(answer["times"]) for answer in given] for name, given in answers.items()}
    # Without a prefix the same cached length takes a longer prompt, so only the steps compare.
    compared = {
        f"{count} distinct prefixes against one shared, m={m}, shared reads off": paired(
            whole[SHARED], whole[DISTINCT]
        ),
        "the same, decode steps alone": paired(steps[SHARED], steps[DISTINCT]),
        f"{count} distinct prefixes against none with the same cached length, decode steps": paired(
            steps[NONE], steps[DISTINCT]
        ),
    }
    rows = []
    for what, ratios in compared.items():
        low, high = interval(ratios)
        step = f"step {statistics.median(steps[DISTINCT]) * 1e3:.1f} ms"
        against = f"95% interval {low:.3f} to {high:.3f}, {len(ratios)} rounds"
        rows.append(Row(what, step, against, statistics.median(ratios), at_least=0.97))
    return rows, {"many_against_one": {"seconds": whole, "steps": steps}}


def _by_length(run: Run, engine: Process, machines: list[bound.Machine]) -> tuple[list[Row], dict[str, Any]]:
    count = _requests(run)
    turns = {str(m): partial(engine.ask, "run", workload=uniform(count, PROMPT, NEW, m=m)) for m in LENGTHS}
    answers = run.referee.alternate(turns, 1 if run.quick else 3)
    machines.append(machine.measure(quick=run.quick, device=run.device))
    found = machine.best_of(machines)
    took = {m: statistics.median(step_s(answer["times"]) for answer in answers[str(m)]) for m in LENGTHS}
    generated = statistics.fmean(step.generated for step in decode_steps(answers["0"][0]["times"]))
    least = {m: bound.step_s(run.shape, found, count, m + PROMPT + generated) for m in LENGTHS}
    rows = [
        Row(
            f"time per token at m={m} against m=0, batch {count}",
            f"step {took[m] * 1e3:.1f} ms",
            f"the lower bound grows {least[m] / least[0]:.2f} times, to {least[m] * 1e3:.1f} ms",
            took[m] / took[0],
        )
        for m in LENGTHS[1:]
    ]
    return rows, {"by_length": {str(m): {"step": took[m], "bound": least[m]} for m in LENGTHS}}


def _by_count(run: Run, engine: Process, _: list[bound.Machine]) -> tuple[list[Row], dict[str, Any]]:
    """The batch stays the same, only how many different prefixes are in it changes."""
    rows, m = _requests(run), 10
    turns = {
        str(count): partial(engine.ask, "run", workload=uniform(rows, PROMPT, NEW, m=m, prefixes=count))
        for count in COUNTS
        if count <= rows
    }
    answers = run.referee.alternate(turns, 1 if run.quick else 3)
    took = {
        count: statistics.median(step_s(answer["times"]) for answer in given)
        for count, given in answers.items()
    }
    line = Row(
        f"time per token, {rows} rows, by the number of distinct prefixes among them, m={m}",
        ", ".join(f"{count}: {1e3 * seconds:.1f} ms" for count, seconds in took.items()),
        "a step with one prefix for all; shared reads off",
        took[str(rows)] / took["1"],
    )
    return [line], {"by_count": took}


def _shared_reads(run: Run, apart: Process, stack: ExitStack, pool: int) -> tuple[list[Row], dict[str, Any]]:
    count, m = _requests(run), 200
    what = f"reading a shared prefix's keys once, m={m}, batch {count}, decode steps"
    workload = uniform(count, PROMPT, NEW, m=m, prefixes=1)
    try:
        together = stack.enter_context(
            run.engine("mixing shared", rows=32, pool_bytes=pool, shared_reads=True)
        )
    except (Missing, ContestantError) as error:
        return [Row(what, "-", str(error))], {}
    if together.ask("kernels")["kernels"] != "native":
        return [
            Row(what, "-", "not built: only the compiled kernels read a prefix once for all of its rows")
        ], {}
    turns = {
        "apart": partial(apart.ask, "run", workload=workload),
        "together": partial(together.ask, "run", workload=workload),
    }
    answers = run.referee.alternate(turns, 1 if run.quick else ROUNDS)
    steps = {name: [step_s(answer["times"]) for answer in given] for name, given in answers.items()}
    gains = paired(steps["apart"], steps["together"])
    low, high = interval(gains)
    row = Row(
        what,
        f"step {statistics.median(steps['together']) * 1e3:.1f} ms",
        f"read once a row: {statistics.median(steps['apart']) * 1e3:.1f} ms; "
        f"95% interval {low:.3f} to {high:.3f}, {len(gains)} rounds",
        statistics.median(gains),
    )
    return [row], {"shared_reads": steps}
