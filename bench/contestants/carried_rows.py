"""Lines of a carried training file, the same for whoever draws so many of them by the same seed."""

import gzip
import random

from bench.losses import DATA


def drawn(dataset: str, examples: int, seed: int) -> bytes:
    """So many lines of the training file, all if it has fewer, in an order that the seed decides."""
    lines = gzip.decompress((DATA / f"{dataset}_train.jsonl.gz").read_bytes()).splitlines(keepends=True)
    return b"".join(random.Random(seed).sample(lines, min(examples, len(lines))))
