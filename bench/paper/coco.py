"""METEOR, ROUGE-L and CIDEr by pycocoevalcap, on tokens of the Stanford PTB tokenizer; both want Java.

pycocoevalcap is the caption evaluation that the E2E challenge's script builds on.
"""

from functools import lru_cache

from bench.paper.metrics import References, Texts, need

Tokens = dict[int, list[str]]


def meteor_of(texts: Texts, references: References) -> float:
    """METEOR 1.5 as pycocoevalcap carries it, 0 to 1."""
    need("pycocoevalcap", program="java")
    from pycocoevalcap.meteor.meteor import Meteor  # noqa: PLC0415 - optional

    wanted, said = tokens(texts, references)
    meteor = Meteor()
    try:
        return float(meteor.compute_score(wanted, said)[0])
    finally:
        _end(meteor)


def rouge_of(texts: Texts, references: References) -> float:
    """ROUGE-L, the mean over the texts, 0 to 1."""
    need("pycocoevalcap", program="java")
    from pycocoevalcap.rouge.rouge import Rouge  # noqa: PLC0415

    return float(Rouge().compute_score(*tokens(texts, references))[0])


def cider_of(texts: Texts, references: References) -> float:
    """CIDEr-D with document frequencies of these references, 0 to 10."""
    need("pycocoevalcap", program="java")
    from pycocoevalcap.cider.cider import Cider  # noqa: PLC0415

    return float(Cider().compute_score(*tokens(texts, references))[0])


def tokens(texts: Texts, references: References) -> tuple[Tokens, Tokens]:
    """(references, texts) by number, tokenised; a text without words stays as an empty one."""
    return _tokens(tuple(texts), tuple(map(tuple, references)))


@lru_cache(
    maxsize=1
)  # the three metrics ask for the same one after the other, and each call starts Java twice
def _tokens(texts: tuple[str, ...], references: tuple[tuple[str, ...], ...]) -> tuple[Tokens, Tokens]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer  # noqa: PLC0415

    tokenizer = PTBTokenizer()
    wanted = {place: [{"caption": plain(one)} for one in refs] for place, refs in enumerate(references)}
    said = {place: [{"caption": plain(text)}] for place, text in enumerate(texts)}
    return tokenizer.tokenize(wanted), tokenizer.tokenize(said)


def _end(meteor: object) -> None:
    """Close the Java process's pipes; the library kills it and leaves them open.

    A score that failed leaves the library's lock taken, for which its finaliser would wait for ever.
    """
    process, lock = meteor.meteor_p, meteor.lock  # type: ignore[attr-defined]
    if lock.locked():
        lock.release()
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.kill()
    process.wait()


def plain(text: str) -> str:
    """One line with something on it: the tokenizer loses empty lines, and drops the full stop again."""
    return " ".join(text.split()) or "."
