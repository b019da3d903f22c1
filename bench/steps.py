"""A decode step: against its lower bound, and what of it is not the model."""

import statistics
from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from bench import bound, machine
from bench.contestant import Missing
from bench.pace import decode_steps
from bench.process import ContestantError, Process
from bench.run import Run
from bench.table import Row
from bench.workload import Workload, uniform

M, PROMPT, NEW = 10, 86, 64  # rows attend to 128 positions on the way
TARGETS = {1: 95, 8: 75, 32: 75, 64: 80}
STRETCH = {"int8, KV bf16": 60}
PARTS = ("products", "head", "attention", "norms", "argmax", "rest", "beside")
BESIDE = "scheduler, greedy sampling without argmax, Python"
DRAWN = "scheduler, sampling at temperature 1 and top_p 0.9, Python"
FORMATS = {  # of weights and of keys and values, beside float32, on a CPU and on an accelerator
    True: {"int8": ("int8", "fp32"), "int8, KV bf16": ("int8", "bf16")},
    False: {"bf16": ("bf16", "fp32"), "bf16, KV bf16": ("bf16", "bf16")},
}


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """Both, in one run with the machine's own figures."""
    sizes = (1, 2) if run.quick else tuple(TARGETS)
    machines = [machine.measure(quick=run.quick, device=run.device)]
    others: dict[str, Process] = {}
    formats = FORMATS[run.device == "cpu"]
    with ExitStack() as stack:
        engine = stack.enter_context(run.engine("steps", rows=64))
        turns = {str(rows): partial(engine.ask, "run", workload=_workload(rows)) for rows in sizes}
        for name, (weights, kv) in formats.items():
            try:
                other = stack.enter_context(run.engine(f"steps {name}", rows=64, weights=weights, kv=kv))
            except (Missing, ContestantError) as error:
                run.say(f"  {name}: {error}")
                continue
            others[name] = other
            turns[f"{sizes[-2]} {name}"] = partial(other.ask, "run", workload=_workload(sizes[-2]))
        turns["the machine itself"] = partial(machine.measure, quick=run.quick, device=run.device)
        answers = run.referee.alternate(turns, 1 if run.quick else 3)
        machines += answers.pop("the machine itself")
        parts, sampled, why = _all_parts(run, engine, others, sizes)
    machines.append(machine.measure(quick=run.quick, device=run.device))
    found = machine.best_of(machines)
    steps = {name: _against_bound(run, found, name, given) for name, given in answers.items()}
    raw = {"machine": {"read": found.read, "peak": found.peak}, "steps": steps, "parts": parts}
    rows = _rows(steps, found, _broken(steps, parts))
    asked = [str(size) for size in sizes] + [f"{sizes[-2]} {name}" for name in formats]
    rows += [_no_step(name) for name in asked if name not in steps]
    rows += (
        [*_part_rows(parts, sizes), _sampled_row(sampled, sizes[-2])] if sampled else _no_parts(why, sizes)
    )
    return rows, raw | {"sampled": sampled}


def _workload(rows: int) -> Workload:
    return uniform(rows, PROMPT, NEW, m=M)


def _against_bound(
    run: Run, found: bound.Machine, name: str, answers: list[dict[str, Any]]
) -> dict[str, float]:
    """Medians over the rounds of the medians over the steps of each."""
    rows, _, formats = name.partition(" ")
    weights, kv = FORMATS[run.device == "cpu"].get(formats, ("fp32", "fp32"))
    shares, seconds, bounds, overlapped = [], [], [], []
    for answer in answers:
        least, took, both = [], [], []
        for step in decode_steps(answer["times"]):
            cached = M + PROMPT + step.generated
            phases = bound.phases(run.shape, int(rows), cached, weights, kv)
            least.append(sum(phase.seconds(found) for phase in phases))
            both.append(bound.overlapped_s(phases, found))
            took.append(step.seconds)
        shares.append(statistics.median(a / b for a, b in zip(least, took, strict=True)))
        seconds.append(statistics.median(took))
        bounds.append(statistics.median(least))
        overlapped.append(statistics.median(both))
    return {
        "rows": int(rows),
        "share": statistics.median(shares),
        "seconds": statistics.median(seconds),
        "bound": statistics.median(bounds),
        "overlapped": statistics.median(overlapped),
    }


def _broken(steps: dict[str, dict[str, float]], parts: dict[str, dict[str, dict[str, float]]]) -> set[str]:
    """The steps that were faster than their bound: the machine was measured in a slower hour than they."""
    timed = {
        size if kind == "fp32" else f"{size} {kind}": found["step"]
        for kind, by_size in parts.items()
        for size, found in by_size.items()
    }
    return {
        name
        for name, step in steps.items()
        if min(step["seconds"], timed.get(name, step["seconds"])) < step["bound"]
    }


def _rows(steps: dict[str, dict[str, float]], found: bound.Machine, broken: set[str]) -> list[Row]:
    rows = []
    said = "; a step of this run was faster than its bound: the machine itself was measured in a slower hour"
    for name, step in steps.items():
        size, _, formats = name.partition(" ")
        kind = f" {formats}" if formats else " fp32"
        weights = formats.partition(",")[0] or "fp32"
        rows.append(
            Row(
                f"step against the lower bound,{kind}, batch {size}" + (", stretch" if formats else ""),
                f"{step['seconds'] * 1e3:.1f} ms",
                f"bound {step['bound'] * 1e3:.1f} ms ({found.read / 1e9:.0f} GB/s, "
                f"{found.peak[weights] / 1e9:.0f} G{'OP' if weights == 'int8' else 'FLOP'}/s; "
                f"{step['overlapped'] * 1e3:.1f} if all reading and computing were at once)"
                + (said if broken else ""),
                None if broken and not _missed(name, step, broken) else 100 * step["share"],
                at_least=_target(name),
                unit="%",
            )
        )
    return rows


def _all_parts(
    run: Run, engine: Process, others: dict[str, Process], sizes: tuple[int, ...]
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, float] | None, str]:
    """By format and size, and of a step that draws its tokens; nothing and why, where the kernels do not tell."""
    try:
        parts = {"fp32": _parts(run, engine, (sizes[-2], sizes[0]))}
        parts |= {name: _parts(run, other, sizes[-2:-1]) for name, other in others.items()}
        return parts, _parts(run, engine, sizes[-2:-1], sampled=True)[str(sizes[-2])], ""
    except (Missing, ContestantError) as error:
        return {}, None, str(error)


def _no_step(name: str) -> Row:
    size, _, formats = name.partition(" ")
    what = f"step against the lower bound, {formats or 'fp32'}, batch {size}"
    return Row(
        what + (", stretch" if formats else ""),
        "-",
        "no figure; what was said above tells why",
        at_least=_target(name),
        unit="%",
    )


def _missed(name: str, step: dict[str, float], broken: set[str]) -> bool:
    """Whether a step missed its target though a bandwidth measured too low flattered it."""
    target = _target(name)
    return name not in broken and target is not None and 100 * step["share"] < target


def _target(name: str) -> float | None:
    """In percent of the bound, of a step by its name; int8 over keys in float32 is only reported."""
    size, _, formats = name.partition(" ")
    return STRETCH.get(formats) if formats else TARGETS.get(int(size))


def _no_parts(why: str, sizes: tuple[int, ...]) -> list[Row]:
    """The rows of `_part_rows` and `_sampled_row` that have a target."""
    share = f"share of a fp32 step, batch {sizes[-2]}"
    return [
        Row(f"{BESIDE}: {share}", "-", why, at_most=5, unit="%"),
        Row(f"{BESIDE}: of a fp32 step, batch {sizes[0]}", "-", why, at_most=1, unit=" ms"),
        Row(f"{DRAWN}: {share}", "-", why, at_most=5, unit="%"),
    ]


def _parts(
    run: Run, engine: Process, sizes: Iterable[int], *, sampled: bool = False
) -> dict[str, dict[str, float]]:
    """Seconds of a step by part; the engine is asked with its clock in."""
    parts = {}
    for rows in dict.fromkeys(sizes):
        turn = partial(engine.ask, "parts", workload=_workload(rows), sampled=sampled)
        turn()
        found = [run.referee.undisturbed(turn) for _ in range(1 if run.quick else 3)]
        parts[str(rows)] = {name: statistics.median(answer[name] for answer in found) for name in found[0]}
    return parts


def _part_rows(kinds: dict[str, dict[str, dict[str, float]]], sizes: tuple[int, ...]) -> list[Row]:
    """Where a step's time goes, and what of it is not the model's."""
    many, one = kinds["fp32"][str(sizes[-2])], kinds["fp32"][str(sizes[0])]
    rows = [
        Row(
            f"where a decode step's time goes, {kind}, batch {size}",
            f"{found['step'] * 1e3:.1f} ms",
            ", ".join(f"{name} {found[name] * 1e3:.2f} ms" for name in PARTS),
            100 * (found["products"] + found["head"]) / found["step"],
            unit="% in products",
        )
        for kind, by_size in kinds.items()
        for size, found in by_size.items()
    ]
    return [
        Row(
            f"{BESIDE}: share of a fp32 step, batch {sizes[-2]}",
            f"{many['beside'] * 1e3:.2f} ms",
            f"step {many['step'] * 1e3:.1f} ms",
            100 * many["beside"] / many["step"],
            at_most=5,
            unit="%",
        ),
        Row(
            f"{BESIDE}: of a fp32 step, batch {sizes[0]}",
            f"{one['beside'] * 1e3:.2f} ms",
            f"step {one['step'] * 1e3:.1f} ms",
            1e3 * one["beside"],
            at_most=1,
            unit=" ms",
        ),
        *rows,
    ]


def _sampled_row(found: dict[str, float], size: int) -> Row:
    """The same where tokens are drawn; random weights make the vocabulary flat, which is the dearest case."""
    return Row(
        f"{DRAWN}: share of a fp32 step, batch {size}",
        f"{found['beside'] * 1e3:.2f} ms",
        f"step {found['step'] * 1e3:.1f} ms",
        100 * found["beside"] / found["step"],
        at_most=5,
        unit="%",
    )
