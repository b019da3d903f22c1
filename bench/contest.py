"""W1 and W2: this engine and its peers in turn, each in a process of its own."""

import statistics
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.contestant import Missing
from bench.process import ContestantError, Process
from bench.run import MAIN, Run, venv
from bench.table import Row, interval, paired
from bench.workload import W1, W2, Workload, uniform

ENGINE, INT8, INT8_BF16 = "engine fp32", "engine int8", "engine int8, KV bf16"
BF16 = "engine bf16, KV bf16"  # in place of int8, on an accelerator
PEFT, STATIC = "PEFT one by one", "transformers static batch"
CONTINUOUS, VLLM, VLLM_EAGER = "transformers continuous batching", "vLLM fp32 compiled", "vLLM fp32 eager"
CT2, CT2_INT8 = "CTranslate2 fp32", "CTranslate2 int8"
FP32_PEERS = (STATIC, CONTINUOUS, CT2, VLLM, VLLM_EAGER)
_NO_PREFIXES = (CONTINUOUS, CT2, CT2_INT8, VLLM, VLLM_EAGER)
_OF_PEFT = 0.125  # of the requests: it serves one after another, each in the same time
_NEAR_TIE = 1e-3  # nats between the best two tokens, within which two summation orders may disagree


@dataclass(frozen=True)
class _Entry:
    """How a contestant is started; `share` of the requests is what it serves in a round."""

    python: Path
    module: str
    settings: dict[str, Any]
    share: float = 1.0


def entries(run: Run) -> dict[str, _Entry]:
    """Everybody who may take part, in the order of the rounds: who is held against whom stands close by."""
    own = {"rows": 32}
    found = {
        CONTINUOUS: _Entry(MAIN, "continuous", {}),
        CT2: _Entry(venv("ctranslate2"), "ct2", {"compute_type": "float32"}),
        STATIC: _Entry(MAIN, "static", {}),
        VLLM_EAGER: _Entry(venv("vllm"), "vllm_cpu", {"eager": True}),
        VLLM: _Entry(venv("vllm"), "vllm_cpu", {"eager": False}),
        ENGINE: _Entry(MAIN, "engine", own | {"weights": "fp32", "kv": "fp32"}),
        PEFT: _Entry(MAIN, "peft_switching", {}, share=_OF_PEFT),
        INT8: _Entry(MAIN, "engine", own | {"weights": "int8", "kv": "fp32"}),
        CT2_INT8: _Entry(venv("ctranslate2"), "ct2", {"compute_type": "int8"}),
        INT8_BF16: _Entry(MAIN, "engine", own | {"weights": "int8", "kv": "bf16"}),
    }
    if run.device != "cpu":
        found[BF16] = _Entry(MAIN, "engine", own | {"weights": "bf16", "kv": "bf16"})
    return {name: entry for name, entry in found.items() if run.peers is None or _named(name, run.peers)}


def _named(name: str, peers: frozenset[str]) -> bool:
    return name.startswith("engine") or any(peer.lower() in name.lower() for peer in peers)


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """Both workloads; rows of the table and all that was measured."""
    workloads = {"W1": W1, "W2": W2}
    if run.quick:
        workloads = {"W1": uniform(4, 16, 4, m=3), "W2": uniform(2, 40, 4, m=20)}
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    with ExitStack() as stack:
        processes, absent = _start_all(run, stack)
        for name, workload in workloads.items():
            run.say(f"{name}: {workload.requests} requests, m={workload.m}, prompt {workload.lengths[0]}")
            answers = _contest(run, processes, workload)
            speeds = {
                who: [sum(map(len, a["tokens"])) / a["seconds"] for a in given]
                for who, given in answers.items()
            }
            equal = _equal_work(run, processes[ENGINE], workload, answers)
            raw[name] = {"tokens_s": speeds, "absent": absent, "equal": equal}
            rows += [_marked(row, equal) for row in (_w1 if name == "W1" else _w2)(speeds, absent)]
            if BF16 in speeds:
                rows.append(_against(f"{name} bf16 with bf16 KV against fp32", speeds, absent, BF16, ENGINE))
    return rows, raw


def _start_all(run: Run, stack: ExitStack) -> tuple[dict[str, Process], dict[str, str]]:
    processes: dict[str, Process] = {}
    absent: dict[str, str] = {}
    for name, entry in entries(run).items():
        try:
            process = run.start(name, entry.python, entry.module, **entry.settings)
        except (Missing, ContestantError) as error:
            absent[name] = str(error)
            run.say(f"  {name}: {error}")
            continue
        processes[name] = stack.enter_context(process)
    return processes, absent


def _contest(run: Run, processes: dict[str, Process], workload: Workload) -> dict[str, list[dict[str, Any]]]:
    everybody = entries(run)
    turns: dict[str, Callable[[], Any]] = {}
    for name, process in processes.items():
        few = workload.first(max(1, round(workload.requests * everybody[name].share)))
        turns[name] = partial(process.ask, "run", workload=few)
    return run.referee.alternate(turns, run.rounds)


def _equal_work(
    run: Run, engine: Process, workload: Workload, answers: dict[str, list[dict[str, Any]]]
) -> dict[str, str]:
    """Texts of each fp32 contestant that are equal to the engine's on the same requests, near-ties aside."""
    without = replace(workload, m=0)
    bare = engine.ask("run", workload=without)["tokens"]
    found = {}
    for name, given in answers.items():
        if name in (ENGINE, INT8, INT8_BF16, BF16, CT2_INT8):
            continue
        asked = without if name in _NO_PREFIXES else workload
        own = bare if name in _NO_PREFIXES else answers[ENGINE][0]["tokens"]
        found[name] = _compared(engine, asked, own, given[0]["tokens"])
        run.say(f"  equal work: {name}: {found[name]}")
    return found


def _compared(engine: Process, workload: Workload, own: list[list[int]], other: list[list[int]]) -> str:
    differing = [i for i, tokens in enumerate(other) if tokens != own[i]]
    text = f"{len(other) - len(differing)} of {len(other)} texts equal the engine's"
    if workload.m == 0:
        text += " without prefixes"
    if not differing:
        return text
    margins = engine.ask("margins", workload=workload)["margins"]
    ties = 0
    for i in differing:
        pairs = enumerate(zip(own[i], other[i], strict=False))
        place = next((p for p, (mine, theirs) in pairs if mine != theirs), None)
        ties += place is not None and margins[i][place] < _NEAR_TIE
    text += f", {ties} more up to a near-tie"
    return text if ties == len(differing) else f"{text}, {len(differing) - ties} DIFFER"


def _marked(row: Row, equal: dict[str, str]) -> Row:
    """The row; against a contestant whose texts are not ours it says so."""
    for peer, said in equal.items():
        if row.against.startswith(f"{peer} ") and "DIFFER" in said:
            return replace(row, against=f"{row.against}; {said}", measured=None)  # it did other work
    return row


def _against(
    what: str,
    speeds: dict[str, list[float]],
    absent: dict[str, str],
    ours: str,
    peer: str,
    at_least: float | None = None,
) -> Row:
    for name in (ours, peer):
        if name not in speeds:
            return Row(what, "-", f"{name}: {absent.get(name, 'failed')}", at_least=at_least)
    ratios = paired(speeds[ours], speeds[peer])
    low, high = interval(ratios)
    mine, theirs = statistics.median(speeds[ours]), statistics.median(speeds[peer])
    less = " without prefixes" if peer in _NO_PREFIXES else ""
    few = f" with {_OF_PEFT:.0%} of the requests, one by one" if peer == PEFT else ""
    against = (
        f"{peer} {theirs:.0f} tok/s{less}{few}; 95% interval {low:.2f} to {high:.2f}, {len(ratios)} rounds"
    )
    return Row(what, f"{mine:.0f} tok/s", against, statistics.median(ratios), at_least)


def _fastest(speeds: dict[str, list[float]], peers: tuple[str, ...]) -> str:
    """Of those that took part; the first if none did."""
    present = [peer for peer in peers if peer in speeds]
    return max(present, key=lambda peer: statistics.median(speeds[peer]), default=peers[0])


def _w1(speeds: dict[str, list[float]], absent: dict[str, str]) -> list[Row]:
    present = [peer for peer in FP32_PEERS if peer in speeds]
    best = _fastest(speeds, FP32_PEERS)
    among = "; ".join(
        f"{peer} "
        + (f"{statistics.median(speeds[peer]):.0f}" if peer in speeds else absent.get(peer, "left out"))
        for peer in FP32_PEERS
    )
    against = partial(_against, speeds=speeds, absent=absent)
    row = against("W1 fp32 against the best fp32 peer", ours=ENGINE, peer=best, at_least=1.3)
    if len(present) < len(FP32_PEERS):  # the best of whoever happens to be there is another question
        row = replace(row, measured=None)
    return [
        against("W1 fp32 against PEFT one by one", ours=ENGINE, peer=PEFT, at_least=8),
        replace(row, against=f"{row.against} ({among})"),
        against("W1 int8 against CTranslate2 int8", ours=INT8, peer=CT2_INT8, at_least=1.5),
        against("W1 int8 with bf16 KV against the same", ours=INT8_BF16, peer=CT2_INT8, at_least=1.5),
    ]


def _w2(speeds: dict[str, list[float]], absent: dict[str, str]) -> list[Row]:
    against = partial(_against, speeds=speeds, absent=absent)
    both = VLLM, VLLM_EAGER
    row = against("W2 fp32 against vLLM on CPU", ours=ENGINE, peer=_fastest(speeds, both), at_least=1.15)
    return [
        row if speeds.keys() >= {*both} else replace(row, measured=None),  # the faster of both, or none
        against("W2 fp32 against the static batch", ours=ENGINE, peer=STATIC, at_least=1.7),
        against("W2 int8 against CTranslate2 int8", ours=INT8, peer=CT2_INT8, at_least=1.5),
        against("W2 int8 with bf16 KV against the same", ours=INT8_BF16, peer=CT2_INT8, at_least=1.5),
    ]
