"""Scores of texts against references, each by a library that others use; a missing one is said, not replaced.

BLEU and TER by sacrebleu, NIST by `nist.py` on sacrebleu's tokens, METEOR, ROUGE-L and CIDEr by pycocoevalcap (the
code that the E2E challenge's script builds on; it needs Java), the ROUGE of summaries by rouge_score. All but sacrebleu
come with the extra `paper`.
"""

import importlib.util
import shutil
from collections.abc import Callable, Sequence

# Of each score the version of its rule, where it is not the first: a record keeps those that it was scored by, and an
# older figure stands in no table. 2 of NIST: all references count; 2 of the slots: one more, other value is wrong.
VERSIONS = {"nist": 2, "slot_error": 2, "slots_wrong": 2}
INSTALL = "install with `make bench-paper-deps`"
Texts = Sequence[str]
References = Sequence[Sequence[str]]


class Missing(Exception):
    """A library, a program or a model is not there; the message says which and the mend."""


def need(*modules: str, program: str | None = None, mend: str = INSTALL) -> None:
    """Raise Missing with the mend unless these modules and this program can be found."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise Missing(f"{module} not installed; {mend}")
    if program is not None and shutil.which(program) is None:
        raise Missing(f"{program} is not on PATH; install a Java runtime")


def bleu(texts: Texts, references: References) -> float:
    """BLEU-4, 0 to 100: sacrebleu's default, tokens as mteval-v13a, cased."""
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415 - only where it is asked for

    return float(BLEU().corpus_score(list(texts), streams(references)).score)


def bleu_uncased(texts: Texts, references: References) -> float:
    """The same in lower case, as the E2E challenge's script takes it."""
    from sacrebleu.metrics.bleu import BLEU  # noqa: PLC0415

    return float(BLEU(lowercase=True).corpus_score(list(texts), streams(references)).score)


def ter(texts: Texts, references: References) -> float:
    """Translation edit rate against the nearest reference, 0 up, times 100; lower is better."""
    from sacrebleu.metrics.ter import TER  # noqa: PLC0415

    return float(TER().corpus_score(list(texts), streams(references)).score)


def nist(texts: Texts, references: References) -> float:
    """NIST-5 on tokens as mteval-v13a, lower case."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a  # noqa: PLC0415

    from bench.paper.nist import score  # noqa: PLC0415

    tokens = Tokenizer13a()
    said = [tokens(text.lower()).split() for text in texts]
    return score(said, [[tokens(reference.lower()).split() for reference in refs] for refs in references])


def streams(references: References) -> list[list[str | None]]:
    """References as sacrebleu wants them: the first of every text, the second of every text, ..."""
    most = max(map(len, references))
    return [[refs[place] if place < len(refs) else None for refs in references] for place in range(most)]


def meteor(texts: Texts, references: References) -> float:
    """METEOR 1.5 for English, times 100."""
    from bench.paper.coco import meteor_of  # noqa: PLC0415 - needs an optional library

    return 100.0 * meteor_of(texts, references)


def rouge_l(texts: Texts, references: References) -> float:
    """ROUGE-L (F with beta 1.2), times 100."""
    from bench.paper.coco import rouge_of  # noqa: PLC0415

    return 100.0 * rouge_of(texts, references)


def cider(texts: Texts, references: References) -> float:
    """CIDEr-D, 0 to 10."""
    from bench.paper.coco import cider_of  # noqa: PLC0415

    return cider_of(texts, references)


def rouge_1(texts: Texts, references: References) -> float:
    """ROUGE-1 of summaries, F1 of stems against the best reference, times 100."""
    return _summary("rouge1", texts, references)


def rouge_2(texts: Texts, references: References) -> float:
    """ROUGE-2 likewise."""
    return _summary("rouge2", texts, references)


def rouge_l_stems(texts: Texts, references: References) -> float:
    """ROUGE-L likewise; `rouge_l` is that of the table tasks."""
    return _summary("rougeL", texts, references)


def _summary(kind: str, texts: Texts, references: References) -> float:
    from bench.paper.summaries import rouge_of  # noqa: PLC0415 - needs an optional library

    return 100.0 * rouge_of(kind, texts, references)


def bertscore(texts: Texts, references: References) -> float:
    """BERTScore F1, 0 to 1."""
    from bench.paper.neural import bertscore_of  # noqa: PLC0415 - needs an optional library and a model

    return bertscore_of(texts, references)


def moverscore(texts: Texts, references: References) -> float:
    """MoverScore."""
    from bench.paper.neural import moverscore_of  # noqa: PLC0415

    return moverscore_of(texts, references)


def bleurt(texts: Texts, references: References) -> float:
    """BLEURT-20."""
    from bench.paper.neural import bleurt_of  # noqa: PLC0415

    return bleurt_of(texts, references)


METRICS: dict[str, Callable[[Texts, References], float]] = {
    "bleu": bleu,
    "bleu_uncased": bleu_uncased,
    "nist": nist,
    "meteor": meteor,
    "rouge_l": rouge_l,
    "rouge_1": rouge_1,
    "rouge_2": rouge_2,
    "rouge_l_stems": rouge_l_stems,
    "cider": cider,
    "ter": ter,
    "bertscore": bertscore,
    "moverscore": moverscore,
    "bleurt": bleurt,
}
ONLY = {"bleu_uncased": "e2e", "rouge_1": "scitldr", "rouge_2": "scitldr", "rouge_l_stems": "scitldr"}


def names(task: str) -> tuple[str, ...]:
    """The scores of a task."""
    return tuple(name for name in METRICS if ONLY.get(name, task) == task)


def measure(
    texts: Texts, references: References, names: Sequence[str]
) -> tuple[dict[str, float], dict[str, str]]:
    """Scores by name, and why some could not be had."""
    scores, missing = {}, {}
    for name in names:
        try:
            scores[name] = METRICS[name](texts, references)
        except Missing as error:
            missing[name] = str(error)
    return scores, missing
