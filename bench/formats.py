"""What the faster number formats cost: loss on the carried evaluation files, through the engine itself.

For each dataset a prefix is trained (in float32, as always); then the same rows are scored by engines
that differ in the format of the weights and of keys and values only. Loss in nats a token of the
completions; the difference to float32 with exact keys and values stands beside it.

Run: python -m bench.formats [--datasets a,b] [--rows 500] [--steps 80]
"""

import argparse
import gc
import gzip

from bench import losses
from prefix_engine import Base, Engine, EngineConfig, Failed, Prefix, Request, load_base
from prefix_engine.testing import Collected
from trainer_worker.rows import Encoded

FORMATS = [
    ("fp32", "fp32"),
    ("fp32", "bf16"),
    ("bf16", "fp32"),
    ("bf16", "bf16"),
    ("int8", "fp32"),
    ("int8", "bf16"),
]


def main() -> None:
    args = arguments()
    base = load_base(args.base, "cpu")
    heads = [f"{weights} weights, {kv} KV" for weights, kv in FORMATS]
    print(f"| dataset | prefix | tokens scored | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 3)}")
    for name in args.datasets.split(",") if args.datasets else losses.names():
        lines = gzip.decompress((losses.DATA / f"{name}_train.jsonl.gz").read_bytes()).splitlines(True)
        prefix = losses.train(base, b"".join(lines[: args.rows]), "direct", "0", args).prefix
        rows = losses.evaluation(base, name, args.score)
        for word, used in (("none", None), ("trained", prefix)):
            found = [loss(base, weights, kv, used, rows) for weights, kv in FORMATS]
            exact, tokens = found[0]
            cells = [f"{exact:.4f}", *(f"{value:.4f} ({value - exact:+.4f})" for value, _ in found[1:])]
            print(f"| {name} | {word} | {tokens:,} | {' | '.join(cells)} |", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2-mini")
    parser.add_argument("--datasets", default="", help="names with commas; all that are carried if empty")
    parser.add_argument("--rows", type=int, default=500, help="most training rows")
    parser.add_argument("--score", type=int, default=120, help="most evaluation rows")
    parser.add_argument("--steps", type=int, default=80, help="updates")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def loss(base: Base, weights, kv, prefix: Prefix | None, rows: list[Encoded]) -> tuple[float, int]:
    """Loss in nats a token of the completions, and how many tokens were scored.

    Raises:
        RuntimeError: a row could not be scored.
    """
    engine = Engine(base, EngineConfig(weights=weights, kv=kv), lambda _: prefix)
    engine.start()
    try:
        sinks = []
        for row in rows:
            asked = Request(row.tokens, 0, None, prefix_id=prefix and "one", echo=True, logprobs=0)
            sinks.append(Collected())
            engine.submit(asked, sinks[-1])
        total, count = 0.0, 0
        for row, sink in zip(rows, sinks, strict=True):
            last = sink.wait(600)
            if isinstance(last, Failed):
                raise RuntimeError(f"{last.code}: {last.message}")  # noqa: TRY004 - left out, a format would gain by it
            scored = sink.infos[row.loss_from :]
            total -= sum(info.logprob for info in scored)
            count += len(scored)
        return total / count, count
    finally:
        engine.close()
        del engine
        gc.collect()  # its memory, before the next one takes as much


if __name__ == "__main__":
    main()
