"""Memory of an engine above a process that only imported it, against what has to be there."""

from typing import Any

from bench.bound import KV_BYTES, WEIGHT_BYTES, kv_values, matrix_weights
from bench.contestant import Missing
from bench.process import ContestantError, Process
from bench.run import MAIN, Run
from bench.table import Row
from bench.workload import W1, uniform

FORMATS = {"fp32": ("fp32", "fp32"), "int8, KV bf16": ("int8", "bf16")}


def measure(run: Run) -> tuple[list[Row], dict[str, Any]]:
    """Each format in a fresh process, after W1."""
    rows: list[Row] = []
    raw: dict[str, Any] = {}
    for name, (weights, kv) in FORMATS.items():
        what = f"memory above an import-only process after W1, {name}, against its parts"
        try:
            raw[name] = _one(run, name, weights, kv)
        except (Missing, ContestantError) as error:
            rows.append(Row(what, "-", str(error), at_most=1.1))
            continue
        rows.append(_row(what, raw[name]))
    return rows, raw


def _one(run: Run, name: str, weights: str, kv: str) -> dict[str, float]:
    with Process(f"memory {name}", MAIN, "engine", run.threads) as engine:
        before = engine.ask("memory", device=run.device)["resident"]
        engine.ask("load", folder=run.folder, device=run.device, rows=32, weights=weights, kv=kv)
        loaded = engine.ask("memory", device=run.device)
        workload = uniform(4, 16, 4, m=3) if run.quick else W1
        engine.ask("run", workload=workload)
        used = engine.ask("run", workload=workload)
        after = engine.ask("memory", device=run.device)
    shape = run.shape
    table = (shape["vocab"] + shape["positions"]) * shape["width"] * 4
    kv_byte = kv_values(shape) * KV_BYTES[kv]
    return {
        "above": after["resident"] - before,
        "loaded": loaded["resident"] - before,
        "peak": loaded["peak"] - before,
        "packed": matrix_weights(shape) * WEIGHT_BYTES[weights],
        "embedding": min(table, after["of_base"]) if after["mapped"] else table,
        "kv": used["most_pages"] * used["page"] * kv_byte,
        "prefixes": used["prefix_bytes"],
        "head": shape["vocab"] * shape["width"] * WEIGHT_BYTES[weights],
    }


def _row(what: str, found: dict[str, float]) -> Row:
    total = sum(found[part] for part in ("packed", "embedding", "kv", "prefixes"))
    mb = {name: value / 1e6 for name, value in found.items()}
    parts = (
        f"{total / 1e6:.0f} MB = packed {mb['packed']:.0f} + of the file of the weights {mb['embedding']:.0f} + KV {mb['kv']:.0f} "
        f"+ prefixes {mb['prefixes']:.0f}; packing costs a copy of all of it that is the process's own, the head's {mb['head']:.0f} among it, "
        f"and while loading a peak of {mb['peak']:.0f}"
    )
    return Row(what, f"{mb['above']:.0f} MB", parts, found["above"] / total, at_most=1.1)
