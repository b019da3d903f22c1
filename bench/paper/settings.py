"""What each method is trained with, and where the figures come from.

gpt2-mini: learning rates by held-out loss on E2E (`python -m bench.paper --study rates`, whose rows never are the
scored inputs), as far as `source` says so; everything else is the product's own plan (`trainer_worker.plan`), for all
methods alike.
Larger checkpoints: the settings of the paper's table 5, and of its section 6 where the table has none.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

MINI = "gpt2-mini"
RATES = (
    "--study rates, E2E, all rows, 1,200 updates: the lowest held-out loss, a worse one tried on both sides"
)
HIGHEST = (
    "--study rates, E2E, all rows, 1,200 updates: the lowest held-out loss, and the highest rate tried there"
)
LOW_RATES = "--study rates, E2E, 100 rows, 30 % of them held out, 2 choices of them: the lowest mean of the held-out losses"
LOW_RATES_500 = (
    "--study rates, E2E, 500 rows, 30 % of them held out, 1 choice of them: the lowest held-out loss"
)
LOW_CODE = "the paper's code, gpt2/train_e2e.py: what it takes unless told, and its low data is 400 updates, warm-up 100"
FIRST = "a first figure, by which the held-out loss falls on E2E; --study rates tries its neighbours"
TABLE_5 = "the paper, table 5"
NONE_GIVEN = "not in the paper; as on gpt2-mini, soft prompts at 0.1"

METHODS = (
    "base", "hand", "search-10", "emb-1", "emb-10", "emb-20", "infix-1", "infix-10", "infix-20", "prefix",
    "adapter-0.1", "adapter-3", "ft-top2", "fine-tuning",
)  # fmt: skip
UNTRAINED = ("base", "hand")
SHARES = {"adapter-0.1": 0.001, "adapter-3": 0.03}
SIZED = ("search", "emb", "infix", "prefix")


@dataclass(frozen=True, slots=True)
class Settings:
    """One method's training on one base and task.

    Attributes:
        rate: of learning; 0 where nothing is learnt by gradient.
        size: positions of a prefix, infix, soft prompt or searched prompt.
        epochs: None lets the product's plan choose the updates.
        steps: updates, instead of epochs.
        batch: rows an update; None lets the plan choose.
        warmup: updates; None is the plan's tenth.
        form: of a prefix: keys and values directly, or by the MLP.
        text_start: of a prefix: where the text's positions begin.
        source: of these figures.
    """

    rate: float
    size: int = 0
    epochs: int | None = None
    steps: int | None = None
    batch: int | None = None
    warmup: int | None = None
    form: Literal["direct", "mlp"] = "direct"
    text_start: Literal["m", "0"] = "0"
    source: str = FIRST


_MINI = {
    "base": Settings(0.0, source="nothing is trained"),
    "hand": Settings(0.0, source="the best of the task's instructions by held-out loss"),
    "search": Settings(0.0, size=10, source="10 candidates an update, as Shin et al. 2020 at the least"),
    "emb": Settings(30.0, size=10, source=HIGHEST),
    "infix": Settings(1e-1, size=10, source=RATES),
    "prefix": Settings(1e-1, size=10, source=RATES),
    "adapter-0.1": Settings(3e-2, source=RATES),
    "adapter-3": Settings(1e-2, source=RATES),
    "ft-top2": Settings(3e-3, source=RATES),
    "fine-tuning": Settings(1e-3, source=RATES),
}
# On other bases, where gpt2-mini's rate is too far from anything that was tried.
_ELSEWHERE = {"emb": 1e-1}
# By the number of rows at which they were chosen; others take those of the nearest, by ratio.
_LOW = {
    "prefix": {
        100: Settings(3e-1, size=10, source=LOW_RATES),
        500: Settings(1e-1, size=10, source=LOW_RATES_500),
    },
    "fine-tuning": {
        100: Settings(3e-4, source=LOW_RATES),
        500: Settings(3e-4, source=LOW_RATES_500),
    },
}


def _paper(rate: float, epochs: int, batch: int, source: str = TABLE_5, size: int = 0) -> Settings:
    form = "mlp" if size else "direct"
    return Settings(rate, size, epochs, None, batch, 0, form, "m", source)


_E2E, _WEBNLG, _DART, _XSUM = "e2e", "webnlg", "dart", "scitldr"
_NEXT = "the paper's table 5 for a neighbouring task or method"
_PAPER = {
    ("prefix", _E2E): _paper(8e-5, 5, 10, size=5),
    ("prefix", _WEBNLG): _paper(5e-5, 5, 5, size=5),
    ("prefix", _DART): _paper(5e-5, 10, 5, size=10),
    ("prefix", _XSUM): _paper(5e-5, 30, 14, "the paper, table 5, XSUM", size=100),
    ("fine-tuning", _E2E): _paper(5e-5, 5, 10),
    ("fine-tuning", _WEBNLG): _paper(1e-5, 10, 6),
    ("fine-tuning", _DART): _paper(1e-5, 10, 6),
    ("fine-tuning", _XSUM): _paper(1e-5, 10, 6, _NEXT),
    ("ft-top2", _E2E): _paper(5e-5, 5, 10, _NEXT),
    ("ft-top2", _WEBNLG): _paper(1e-5, 10, 6, _NEXT),
    ("ft-top2", _DART): _paper(1e-5, 10, 6, _NEXT),
    ("ft-top2", _XSUM): _paper(1e-5, 10, 6, _NEXT),
    ("adapter-0.1", _E2E): _paper(8e-5, 10, 5),
    ("adapter-0.1", _DART): _paper(8e-5, 5, 5),
}
_ADAPTER = _paper(5e-5, 10, 5)


def kind_of(method: str) -> str:
    """`emb` of `emb-20`; other names are their own kind."""
    head, _, size = method.rpartition("-")
    return head if head in SIZED and size.isdecimal() else method


def settings_of(method: str, base: str, task: str, *, low: int | None = None) -> Settings:
    """A method's settings.

    Args:
        method: one of `METHODS`, or `prefix`, `infix`, `emb`, `search` with another size behind a dash.
        base: name of the checkpoint.
        task: one of the tasks.
        low: rows of low data; None is no low data.

    Raises:
        ValueError: there is no such method.
    """
    kind = kind_of(method)
    if kind not in _MINI:
        raise ValueError(f"--methods {method!r} is unknown; choose of {', '.join(METHODS)}")
    found = _MINI[kind] if low is None else _few(kind, low)
    if base != MINI:
        found = _PAPER.get((kind, task)) or (_ADAPTER if kind in SHARES else _unlisted(kind, task))
        if low is not None and kind not in UNTRAINED:
            rate = 5e-5 if (kind, task) in _PAPER else found.rate
            found = replace(found, rate=rate, epochs=None, steps=400, batch=10, warmup=100, source=LOW_CODE)
    return found if kind == method else replace(found, size=int(method.rpartition("-")[2]))


def _few(kind: str, rows: int) -> Settings:
    """Those of low data, chosen at the nearest number of rows."""
    tried = _LOW.get(kind)
    if tried is None:
        return _MINI[kind]
    return tried[min(tried, key=lambda count: abs(math.log(rows / count)))]


def _unlisted(kind: str, task: str) -> Settings:
    """What the paper does not list: the rate of gpt2-mini, but for soft prompts, epochs and batch of the prefix."""
    like = _PAPER["prefix", task]
    rate = _ELSEWHERE.get(kind, _MINI[kind].rate)
    found = replace(_MINI[kind], rate=rate, epochs=like.epochs, batch=like.batch, warmup=like.warmup)
    return found if kind in UNTRAINED else replace(found, source=NONE_GIVEN)
