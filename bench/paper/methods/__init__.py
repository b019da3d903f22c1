"""The methods that are compared, made by name."""

from collections.abc import Sequence

from bench.paper.host import Host
from bench.paper.methods.adapter import Adapter
from bench.paper.methods.infix import Infix
from bench.paper.methods.method import Method
from bench.paper.methods.plain import Bare, FineTuning, TopTwo
from bench.paper.methods.prefix import ProductPrefix
from bench.paper.methods.soft import Soft
from bench.paper.methods.words import Search, Words
from bench.paper.settings import SHARES, Settings, kind_of
from bench.paper.tasks import Task
from trainer_worker.rows import Encoded


def make(
    host: Host,
    task: Task,
    name: str,
    settings: Settings,
    seed: int,
    words: str | None,
    held_out: Sequence[Encoded],
) -> Method:
    """A method before its training.

    Args:
        host: the frozen checkpoint.
        task: whose words it begins with.
        name: as in `settings.METHODS`.
        settings: of the method.
        seed: of what begins by chance.
        words: to begin with instead of the task's.
        held_out: rows that choose among hand-written prompts.
    """
    kind, begin = kind_of(name), words or task.words
    if kind in SHARES:
        return Adapter(host, SHARES[kind], seed)
    if kind == "hand":
        written = [Words(host, host.encode(text)) for text in task.instructions]
        return min(written, key=lambda method: method.score(held_out))
    made = {
        "base": lambda: Bare(host),
        "fine-tuning": lambda: FineTuning(host),
        "ft-top2": lambda: TopTwo(host),
        "prefix": lambda: ProductPrefix(host),
        "infix": lambda: Infix(host, settings.size, begin),
        "emb": lambda: Soft(host, settings.size, begin),
        "search": lambda: Search(host, settings.size, begin),
    }
    return made[kind]()
