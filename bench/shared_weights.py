"""What a service and a training process on one machine hold of the base together, and what packing adds.

A real service that has answered a request, with the compiled kernels (which pack) and with torch's (which do not),
beside a real training process that has moved. Of each: resident memory (RSS), the same with every shared page divided
among who shares it (PSS), and both of the base's mapping alone. Linux: /proc/PID/smaps.

Run: python -m bench.shared_weights [--base gpt2-mini 124m]
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from urllib.request import Request, urlopen

from bench.model import model_folder
from bench.resident import memory
from bench.service_site import Running, found
from prefix_engine import Base, load_base
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.child_process import Child
from trainer_worker.order import Order

UPDATES = 3
HEAD = """| base | kernels | process | RSS | PSS | of it the mapping: RSS | PSS | memory of its own |
|---|---|---|---|---|---|---|---|"""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", nargs="+", default=["gpt2-mini", "124m"], help="124m: random weights")
    args = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("PREFIX_")]:
        del os.environ[name]
    print(HEAD)
    for name in args.base:
        base = load_base(str(model_folder("124m")) if name == "124m" else name, "cpu")
        for line in measure(name, str(model_folder("124m")) if name == "124m" else name, base):
            print(line, flush=True)


def measure(name: str, place: str, base: Base) -> list[str]:
    """Lines of the table for one base, which stays mapped here no longer than this process needs it."""
    weights = sum(tensor.nbytes for _, tensor in base.weights.named())
    lines, own = [], {}
    base.release()
    for kernels in ("torch", "native"):
        with tempfile.TemporaryDirectory(prefix="prefixserve-bench-") as data:
            (tenant,) = found(Path(data), base, [1])
            base.release()
            with Running(Path(data), place, kernels=kernels) as service:
                _generate(service.url, tenant.key, tenant.prefixes[0])
                alone = memory(service.pid)
                with Child(_order().frames(place, base.fingerprint, 1)) as child:
                    _moved(child)
                    _generate(service.url, tenant.key, tenant.prefixes[0])
                    both = {"service": memory(service.pid), "training": memory(child.pid)}
        own[kernels] = both["service"]["own"]
        for who, seen in {"service before it": alone, **both}.items():
            cells = " | ".join(
                f"{seen[kind] / 1e6:.0f} MB" for kind in ("rss", "pss", "map_rss", "map_pss", "own")
            )
            lines.append(f"| {name} | {kernels} | {who} | {cells} |")
    added = (own["native"] - own["torch"]) / 1e6
    return [
        *lines,
        f"| {name} | | weights in float32 {weights / 1e6:.0f} MB; packing adds {added:.0f} MB | | | | | |",
    ]


def _generate(url: str, key: str, prefix: str) -> None:
    body = {"model": prefix, "prompt": "The sea", "max_tokens": 16}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    with urlopen(Request(f"{url}/v1/completions", json.dumps(body).encode(), headers), timeout=60) as answer:
        answer.read()


def _order() -> Order:
    rows = [{"prompt": f"number {i}", "completion": "one two three"} for i in range(40)]
    data = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    wishes = Hyperparameters(max_steps=1_000_000, batch_size=4, eval_steps=1_000_000)
    return Order(wishes, 0, [("training", data)])


def _moved(child: Child) -> None:
    for _ in range(UPDATES):
        while (frame := child.hear(60)) is None or frame.kind != "progress":
            pass


if __name__ == "__main__":
    main()
