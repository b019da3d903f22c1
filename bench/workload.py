"""What is asked of every contestant, in plain Python, so that each venv draws the very same prompts."""

import random
from dataclasses import dataclass

SHAPES = {
    "124m": {"layers": 12, "heads": 12, "width": 768, "positions": 1024, "vocab": 50257},
    "tiny": {"layers": 2, "heads": 2, "width": 128, "positions": 1024, "vocab": 512},
}


@dataclass(frozen=True, slots=True)
class Workload:
    """Requests that come at once: greedy, no end token, `new` tokens each.

    Attributes:
        lengths: prompt tokens of each request.
        new: tokens that each generates.
        m: positions of each prefix; 0 is none.
        prefixes: distinct prefixes; request i has number `i % prefixes`.
    """

    lengths: tuple[int, ...]
    new: int
    m: int = 0
    prefixes: int = 1

    @property
    def requests(self) -> int:
        """How many requests."""
        return len(self.lengths)

    @property
    def generated(self) -> int:
        """Tokens that all requests generate."""
        return len(self.lengths) * self.new

    def prompts(self, vocab: int) -> list[list[int]]:
        """Token ids of each prompt, without the end token (the last id)."""
        draw = random.Random(1)
        return [[draw.randrange(vocab - 1) for _ in range(length)] for length in self.lengths]

    def first(self, requests: int) -> "Workload":
        """The first requests alone, with the prompts and prefixes that they have here."""
        return Workload(self.lengths[:requests], self.new, self.m, self.prefixes)


def uniform(requests: int, prompt: int, new: int, m: int = 0, prefixes: int | None = None) -> Workload:
    """Prompts of one length; as many prefixes as requests if not told."""
    return Workload((prompt,) * requests, new, m, requests if prefixes is None else prefixes)


W1 = uniform(requests=32, prompt=64, new=32, m=10)
W2 = uniform(requests=8, prompt=400, new=32, m=200)
