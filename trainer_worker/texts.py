"""Texts that a prefix writes for held-out prompts, scored against the completions that belong to them.

Written by the engine that serves, greedily, behind the prefix as it would be published. Scores are of the whole
corpus, by sacrebleu (Post 2018, "A Call for Clarity in Reporting BLEU Scores"); rows with the same prompt are one
prompt with several references, as the E2E challenge counts them.
"""

import gc
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from prefix_engine import Base, Delta, Engine, EngineConfig, Event, Failed, Prefix, Request
from prefix_engine.template import Template
from prefix_store.evaluation import Evaluation
from trainer_worker.pieces import Pieces, cut
from trainer_worker.rows import Row

_ROWS = 16
_MEMORY = 256 << 20  # bytes, for keys and values of the rows
_NAME = "prefix"  # that the engine asks its loader for
_REFERENCES = 40  # of a prompt at most, about what the E2E challenge's longest lists have
_LETTERS, _PIECE = 128, 128_000  # what a prompt takes beside its own length, and a piece of them at most
_TER_WORDS = 200  # of a text or reference: edits take seconds there, and grow with the square
_LOAD_S = 0.005  # between two looks whether the prefix is there


@dataclass(frozen=True, slots=True)
class Prompt:
    """A held-out prompt and every completion that a row gives it."""

    text: str
    references: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Writer:
    """Who writes: a prefix, or the base alone, and how it reads a prompt."""

    prefix: Prefix | None
    template: Template

    @property
    def offset(self) -> int:
        """Where text starts."""
        return 0 if self.prefix is None else self.prefix.position_offset


def chosen(base: Base, rows: Sequence[Row], writers: Sequence[Writer], most: int) -> Pieces[list[Prompt]]:
    """At most so many of the prompts, evenly, that leave each writer room for a token; pauses between pieces."""
    by_prompt: dict[str, list[str]] = {}
    for row in rows:
        by_prompt.setdefault(row.prompt, []).append(row.completion)

    def fits(prompt: str) -> bool:
        return all(
            writer.offset + len(writer.template.prompt_ids(base.tokenizer, prompt)) < base.config.positions
            for writer in writers
        )

    found: list[Prompt] = []
    for place, piece in enumerate(cut(by_prompt.items(), lambda asked: _LETTERS + len(asked[0]), _PIECE)):
        if place:
            yield
        found += [Prompt(text, tuple(refs[:_REFERENCES])) for text, refs in piece if fits(text)]
    step = max(1.0, len(found) / most)
    return [found[int(i * step)] for i in range(min(most, len(found)))]


def write(
    base: Base,
    writer: Writer,
    prompts: Sequence[Prompt],
    max_tokens: int,
) -> Pieces[list[str]]:
    """One text for each prompt; pauses after every step of the engine.

    Args:
        base: the model.
        writer: who writes.
        prompts: that it reads.
        max_tokens: of each text; less where the base has no more positions.

    Raises:
        RuntimeError: the engine failed on a text; scores without it would mean nothing.
    """
    # Float32 keys and values of two rows as long as there can be: none is too long for the memory.
    longest = 2 * 4 * base.config.layers * base.config.width * base.config.positions
    memory = max(_MEMORY, 2 * longest)
    behind = writer.prefix
    pool = 1 << 20 if behind is None else max(1 << 20, 4 * behind.nbytes)
    config = EngineConfig(rows=_ROWS, kv_bytes=memory, pool_bytes=pool, kernels="torch", prompt_cache_s=0)
    engine = Engine(base, config, ({} if behind is None else {_NAME: behind}).__getitem__)
    try:
        sinks = [_Text() for _ in prompts]
        for prompt, sink in zip(prompts, sinks, strict=True):
            ids = tuple(writer.template.prompt_ids(base.tokenizer, prompt.text))
            room = base.config.positions - writer.offset - len(ids)
            wanted = min(max_tokens, room)
            prefix_id = None if behind is None else _NAME
            engine.submit(Request(ids, wanted, writer.template.end_id, prefix_id=prefix_id), sink)
        while not all(sink.ended for sink in sinks):
            yield
            if not engine.turn():
                time.sleep(_LOAD_S)
    finally:
        engine.close()
        del engine
        gc.collect()  # its parts know one another; the next writer's memory must not come on top of it
    failed = {sink.failed for sink in sinks} - {"", "non_finite"}
    if failed:
        raise RuntimeError(f"texts could not be written: {', '.join(sorted(failed))}")
    return [sink.text for sink in sinks]


class _Text:
    """A sink; a row whose numbers broke has written nothing."""

    def __init__(self) -> None:
        self.text, self.failed, self.ended = "", "", False

    def __call__(self, event: Event) -> None:
        """Take one event."""
        if isinstance(event, Delta):
            self.text += event.text
            return
        if isinstance(event, Failed):
            self.text, self.failed = "", event.code
        self.ended = True


def scores(
    evaluation: Evaluation, texts: Sequence[str], prompts: Sequence[Prompt]
) -> Pieces[dict[str, float]]:
    """Of each metric that was asked for: BLEU and chrF from 0 to 100, TER from 0 up, exact matches from 0 to 1.

    Pauses after every metric, and for TER, which takes seconds for a hundred words, after every reference of a text. TER
    is of their first 200 words.
    """
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 - only where it is asked for
    from sacrebleu.metrics.chrf import CHRF  # noqa: PLC0415
    from sacrebleu.metrics.ter import TER  # noqa: PLC0415

    said = [text.strip() for text in texts]
    references = [[reference.strip() for reference in prompt.references] for prompt in prompts]
    most = max(map(len, references))
    streams = [[refs[i] if i < len(refs) else None for refs in references] for i in range(most)]
    corpus = {"bleu": BLEU, "chrf": CHRF}
    found = {}
    for name in [name for name in corpus if name in evaluation.metrics]:
        found[name] = float(corpus[name]().corpus_score(said, streams).score)
        yield
    if "ter" in evaluation.metrics:
        metric, edits, words = TER(), 0.0, 0.0
        for text, refs in zip(said, references, strict=True):
            least, lengths = math.inf, 0.0
            for reference in refs:  # as sacrebleu does with several: fewest edits, mean length
                yield
                one = metric.sentence_score(_beginning(text), [_beginning(reference)])
                least, lengths = min(least, one.num_edits), lengths + one.ref_length
            edits, words = edits + least, words + lengths / len(refs)
        found["ter"] = 100.0 * edits / words if words else 0.0
    if "exact_match" in evaluation.metrics:
        same = [text in refs for text, refs in zip(said, references, strict=True)]
        found["exact_match"] = sum(same) / len(same)
    return found


def _beginning(text: str) -> str:
    """What TER reads of a text."""
    words = text.split()
    return text if len(words) <= _TER_WORDS else " ".join(words[:_TER_WORDS])
