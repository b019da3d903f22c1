"""The service's bench (W3): over HTTP with streams, on a temporary folder, with tenants and prefixes of its own.

Run: python -m bench.service [--quick] [--rows sweep,fair,cold,beside,registry] [--base gpt2-mini] [--device cuda]
"""

import argparse
import math
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from bench.model import model_folder
from bench.referee import LIMIT, Referee
from bench.results import choose_device, choose_rows, folder
from bench.sections import Planned, end, forget, measure_all
from bench.service_beside import beside
from bench.service_cold import cold
from bench.service_fair import fair
from bench.service_registry import registry
from bench.service_run import LIGHT, PATIENT_S, QUICK, M, ServiceRun, Sizes
from bench.service_site import Running, found
from bench.service_sweep import saturated, sweep, table
from bench.table import Row
from prefix_engine import load_base

Measure = Callable[[ServiceRun], tuple[list[Row], dict[str, Any]]]


def loads(run: ServiceRun) -> tuple[list[Row], dict[str, Any]]:
    """Saturated by a service that refuses nothing, then swept on one whose deadline makes it refuse."""
    with Running(run.folder, run.base_model, deadline_seconds=PATIENT_S) as service:
        rows, full = saturated(run, service)
    deadline = max(run.sizes.deadline_s, 1.5 * run.sizes.under_way / run.capacity)
    with Running(run.folder, run.base_model, deadline_seconds=str(deadline)) as service:
        more, swept = sweep(run, service, full["prefills"])
    run.say(table(swept["points"]))
    return rows + more, {"saturated": full, "sweep": swept | {"deadline": deadline}}


MEASURES: dict[str, Measure] = {
    "sweep": loads,
    "fair": fair,
    "cold": cold,
    "beside": beside,
    "registry": registry,
}


def main() -> None:
    """Measure what was asked for, and print one table."""
    args = arguments()
    for name in [name for name in os.environ if name.startswith("PREFIX_")]:
        del os.environ[name]  # nobody's own settings, least of all their database
    os.environ["PREFIX_DEVICE"] = args.device  # what the service and the bare engine are told
    sizes = QUICK if args.quick else Sizes()
    base_model = args.base or str(model_folder("tiny" if args.quick else "124m"))
    out = folder(quick=args.quick, base=args.base or "", device=args.device)
    forget([f"service-{name}" for name in args.rows], out)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="prefixserve-bench-") as data:
        base = load_base(base_model, "cpu")
        each = sizes.prefixes // 8
        tenants = found(Path(data), base, [each] * 8 + [1] * (LIGHT + 1), M)
        referee = Referee(math.inf if args.quick else LIMIT)
        run = ServiceRun(sizes, Path(data), base_model, tenants, referee)
        del base
        run.say(f"== {sizes.prefixes} prefixes published: {time.perf_counter() - began:.0f} s")
        sections = {
            name: Planned(f"service-{name}", partial(MEASURES[name], run), referee) for name in args.rows
        }
        lines, failed = measure_all(sections, out, args.device)
    print("\n".join(lines))
    print(
        f"\n{time.perf_counter() - began:.0f} s in all, {base_model.rpartition('/')[2]}; {referee.turns} watched "
        f"turns, {referee.rejected} rejected as disturbed and repeated, {referee.kept_disturbed} kept though disturbed"
    )
    end(failed, quick=args.quick)


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, tuple(MEASURES))
    choose_device(parser)
    parser.add_argument("--base", help="a base model; random weights of the 124M shape if not given")
    parser.add_argument("--quick", action="store_true", help="a tiny shape, short loads: shows that it works")
    return parser.parse_args()


if __name__ == "__main__":
    main()
