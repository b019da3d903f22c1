"""BERTScore, BLEURT and MoverScore: scores by models of their own, taken only where package and model are there.

The packages of the first two come with the extra `paper-models`. MoverScore's last release wants numpy and
transformers of its year and a GPU: it is loaded where somebody installed it by itself, and said to be missing else.
The models come from the hub's cache or a folder; nothing here is downloaded behind a person's back but by these
libraries themselves, as they are configured (HF_HUB_OFFLINE).
"""

import importlib
import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from bench.paper.metrics import Missing, References, Texts, need

MODELS = "install with `make bench-paper-models`"
BERT = os.environ.get("BERTSCORE_MODEL", "roberta-large")  # the package's default for English
BLEURT = os.environ.get("BLEURT_MODEL", "lucadiliello/BLEURT-20")
_BATCH = 16
Found = TypeVar("Found")


def bertscore_of(texts: Texts, references: References) -> float:
    """F1 against the best reference, mean over the texts, 0 to 1, not rescaled."""
    need("bert_score", mend=MODELS)
    from bert_score import BERTScorer  # noqa: PLC0415 - optional

    scorer = there("BERTScore", BERT, lambda: BERTScorer(model_type=BERT, lang="en"))
    return float(scorer.score(list(texts), [list(refs) for refs in references])[2].mean())


def bleurt_of(texts: Texts, references: References) -> float:
    """The best reference's score, mean over the texts; about 0 to 1."""
    need("bleurt_pytorch", mend=MODELS)
    package = importlib.import_module("bleurt_pytorch")

    def load() -> tuple[Any, Any]:
        return (
            package.BleurtForSequenceClassification.from_pretrained(BLEURT).eval(),
            package.BleurtTokenizer.from_pretrained(BLEURT),
        )

    model, tokenizer = there("BLEURT", BLEURT, load)
    pairs = [
        (place, reference, text)
        for place, (text, refs) in enumerate(zip(texts, references, strict=True))
        for reference in refs
    ]
    best = [-float("inf")] * len(texts)
    for start in range(0, len(pairs), _BATCH):
        places, wanted, said = zip(*pairs[start : start + _BATCH], strict=True)
        with torch.no_grad():
            given = tokenizer(
                list(wanted),
                list(said),
                padding="longest",
                truncation=True,
                max_length=512,
                return_tensors="pt",
            )
            found = model(**given).logits.flatten().tolist()
        for place, score in zip(places, found, strict=True):
            best[place] = max(best[place], score)
    return sum(best) / len(best)


def moverscore_of(texts: Texts, references: References) -> float:
    """Unigram MoverScore against the best reference, mean over the texts."""
    need("moverscore_v2", "pyemd", mend="it has no release for this numpy; install it by itself")
    package = there("MoverScore", "distilbert-base-uncased", lambda: importlib.import_module("moverscore_v2"))
    flat = [reference for refs in references for reference in refs]
    weights = package.get_idf_dict(flat), package.get_idf_dict(list(texts))
    total = 0.0
    for text, refs in zip(texts, references, strict=True):
        found = package.word_mover_score(
            list(refs), [text] * len(refs), *weights, n_gram=1, remove_subwords=True
        )
        total += max(found)
    return total / len(texts)


def there(name: str, model: str, load: Callable[[], Found]) -> Found:
    """What `load` loads.

    Raises:
        Missing: the model cannot be had, or its library does not run beside these versions.
    """
    try:
        return load()
    except (OSError, ValueError, ImportError, AttributeError, AssertionError, RuntimeError) as error:
        raise Missing(
            f"{name}'s model {model} is not there ({type(error).__name__}); put it in the hub's cache"
        ) from error
