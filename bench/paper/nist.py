"""NIST-5 as mteval-v13a and the E2E challenge's script (pymteval, Dušek et al.) take it over several references.

Doddington 2002, "Automatic evaluation of machine translation quality using n-gram co-occurrence statistics".
An n-gram of a text counts as often as it stands in that one of its references which has it most often. It weighs
log2(count of its first n-1 words / count of it), counted over all references of all texts; for single words the
first count is that of all words. The length is held against the mean length of a text's references.
"""

import math
from collections import Counter
from collections.abc import Sequence

MOST = 5  # words of an n-gram
BETA = -math.log(0.5) / math.log(1.5) ** 2  # the penalty is a half where a text has two thirds of the length
Words = Sequence[str]


def score(texts: Sequence[Words], references: Sequence[Sequence[Words]], most: int = MOST) -> float:
    """NIST of a corpus, 0 up.

    Args:
        texts: words of each text.
        references: words of each text's references, one or more of them, not all empty.
        most: words of the longest n-gram.
    """
    known: Counter[tuple[str, ...]] = Counter()
    for refs in references:
        for ref in refs:
            known[()] += len(ref)
            for n in range(1, most + 1):
                known.update(ngrams(ref, n))
    total = 0.0
    for n in range(1, most + 1):
        gained = sum(_gain(text, refs, n, known) for text, refs in zip(texts, references, strict=True))
        count = sum(max(0, len(text) - n + 1) for text in texts)
        total += gained / max(1, count)
    wanted = sum(sum(map(len, refs)) / len(refs) for refs in references)
    return total * penalty(sum(map(len, texts)) / wanted)


def ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    """The n-grams of a text and how often it has each."""
    return Counter(tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def _gain(text: Words, refs: Sequence[Words], n: int, known: Counter[tuple[str, ...]]) -> float:
    """Bits of the n-grams that a text shares with its references."""
    most: Counter[tuple[str, ...]] = Counter()
    for ref in refs:
        most |= ngrams(ref, n)
    shared = ngrams(text, n) & most
    return sum(count * math.log2(known[gram[:-1]] / known[gram]) for gram, count in shared.items())


def penalty(ratio: float) -> float:
    """Factor for the length of the texts over that of their references, 0 to 1."""
    if ratio <= 0:
        return 0.0
    return 1.0 if ratio >= 1 else math.exp(-BETA * math.log(ratio) ** 2)
