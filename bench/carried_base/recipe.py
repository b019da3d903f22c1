"""The settings of a run, one dataclass, and the learning rate that they give each update.

Warm-up, constant, then linear to zero (WSD, https://arxiv.org/abs/2404.06395): the constant part may be
made shorter or longer while it runs, as nothing before the decay depends on where the end is.
"""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights of a run, beside the corpus, the starting weights and the number of threads.

    `updates` is 0 until the budget is known. An update takes `blocks` runs of `block` tokens; what a window
    is, is said in `bench.carried_base.batches`.
    """

    start: str = "gpt2-mini"  # a base to continue from, or none
    seed: int = 20
    updates: int = 0
    blocks: int = 6
    block: int = 1024  # the longest window, n_positions
    window: int = 256  # the short windows
    long_every: int = 2  # one update in so many has windows of `block` tokens; 0: none has
    matrices_rate: float = 1e-3  # Muon; an update's root mean square is 0.2 of it, as AdamW's
    rest_rate: float = 1e-3  # AdamW
    matrices_decay: float = 0.01
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    warmup: int = 20  # updates
    decay: float = 0.5  # of all updates
    micro: int = 1  # parts in which an update's gradient is added up: memory, no other meaning
    layers: int = 6  # the shape, for a start from none
    heads: int = 4
    width: int = 256
    vocab: int = 8192

    def __post_init__(self) -> None:
        wrong = [
            (self.block % self.window, "window must divide block"),
            (self.blocks % self.micro, "micro must divide blocks"),
            (not 0 < self.decay <= 1, "decay must be above 0 and at most 1"),
            (self.updates < 0, "updates must not be negative"),
        ]
        for bad, why in wrong:
            if bad:
                raise ValueError(f"recipe: {why}")

    @property
    def tokens(self) -> int:
        """Tokens of an update."""
        return self.blocks * self.block

    @property
    def decays_from(self) -> int:
        """The first update, from 0, whose rate is below the constant one."""
        return self.updates - round(self.updates * self.decay)

    def share(self, update: int) -> float:
        """What part of the peak rates update `update` (from 0) has: within 0 and 1."""
        if update < self.warmup and update < self.decays_from:
            return (update + 1) / self.warmup
        if update < self.decays_from:
            return 1.0
        reached = self.share(self.decays_from - 1) if 0 < self.decays_from < self.warmup else 1.0
        return reached * (self.updates - update) / (self.updates - self.decays_from + 1)

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self) | {"betas": list(self.betas)}


def from_json(said: dict[str, Any]) -> Recipe:
    """The recipe that was kept."""
    return Recipe(**said | {"betas": tuple(said["betas"])})
