"""ROUGE-1, -2 and -L by rouge_score with Porter's stems, as summaries are scored; of several references the best counts."""

from collections.abc import Sequence
from functools import lru_cache

from bench.paper.metrics import References, Texts, need

KINDS = ("rouge1", "rouge2", "rougeL")


def rouge_of(kind: str, texts: Texts, references: References) -> float:
    """F1 of one of `KINDS`, the mean over the texts, 0 to 1."""
    need("rouge_score")
    return _all(tuple(texts), tuple(map(tuple, references)))[KINDS.index(kind)]


@lru_cache(maxsize=1)  # the three are asked for one after the other
def _all(texts: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> Sequence[float]:
    from rouge_score.rouge_scorer import RougeScorer  # noqa: PLC0415 - optional

    scorer = RougeScorer(list(KINDS), use_stemmer=True)
    found = [scorer.score_multi(refs, text) for text, refs in zip(texts, references, strict=True)]
    return [sum(one[kind].fmeasure for one in found) / len(found) for kind in KINDS]
