"""Token ids of the corpus: made once, kept as uint16 beside what they were made from, split, put in order.

A document is held out by its own text (`held_out_rule`), so that neither the seed of a training nor the
order of the files moves a row from one side to the other, and equal documents lie on one side. Never held:
text; the cache has ids alone.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from bench.carried_base.corpus import Corpus, documents
from bench.whole import whole

END = "<|endoftext|>"
END_ID = 0
HELD_OUT_ONE_IN = 100


@dataclass(frozen=True, slots=True)
class Encoded:
    """The documents of a corpus in its order; `ids[starts[i] : starts[i + 1]]` is document i."""

    ids: NDArray[np.uint16]  # [tokens], without end tokens
    starts: NDArray[np.int64]  # [documents + 1]
    sources: NDArray[np.int64]  # [documents], place of the file in the listing
    held_out: NDArray[np.bool_]  # [documents]

    def document(self, place: int) -> NDArray[np.uint16]:
        """Ids of one document."""
        return self.ids[self.starts[place] : self.starts[place + 1]]


def held_out_rule(digest: bytes) -> bool:
    """Whether the document with this SHA-256 of its UTF-8 text is held out: one in a hundred is."""
    return int.from_bytes(digest[:8], "big") % HELD_OUT_ONE_IN == 0


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json, reading `<|endoftext|>` in a text as plain characters."""
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    return tokenizer


def train_tokenizer(folder: Path, corpus: Corpus, vocab: int) -> Tokenizer:
    """Byte-level BPE with `vocab` entries over the whole corpus; `<|endoftext|>` is id 0."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((doc for text in corpus.texts for doc in documents(folder, text)), trainer)
    tokenizer.encode_special_tokens = True
    return tokenizer


def encode(folder: Path, corpus: Corpus, tokenizer: Tokenizer, cache: Path) -> Encoded:
    """Encode a checked corpus, or take what `cache` holds of the same files and tokenizer."""
    made_from = corpus.digest + hashlib.sha256(tokenizer.to_str().encode()).hexdigest()
    path = cache / f"tokens-{hashlib.sha256(made_from.encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with whole(path) as making:
            save_file(_arrays(folder, corpus, tokenizer), making)
    with safe_open(path, "numpy") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    return Encoded(**held | {"held_out": held["held_out"].astype(np.bool_)})


def stream(encoded: Encoded, seed: int) -> NDArray[np.uint16]:
    """The training documents in the order of the seed, `<|endoftext|>` after each: `[tokens]`."""
    places = np.flatnonzero(~encoded.held_out)
    np.random.default_rng([seed, 0]).shuffle(places)
    end = np.array([END_ID], dtype=np.uint16)
    return np.concatenate([part for place in places for part in (encoded.document(int(place)), end)])


def save_tokenizer(tokenizer: Tokenizer, folder: Path, positions: int) -> None:
    """tokenizer.json and tokenizer_config.json as transformers reads them."""
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END,
        "eos_token": END,
        "unk_token": END,
        "model_max_length": positions,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")


def _arrays(folder: Path, corpus: Corpus, tokenizer: Tokenizer) -> dict[str, NDArray[np.generic]]:
    parts, sources, held = [], [], []
    for place, text in enumerate(corpus.texts):
        for some in _some(documents(folder, text), 256):
            codes = tokenizer.encode_batch_fast(some, add_special_tokens=False)
            parts += [np.array(code.ids, dtype=np.uint16) for code in codes]
            held += [held_out_rule(hashlib.sha256(document.encode()).digest()) for document in some]
            sources += [place] * len(some)
    return {
        "ids": np.concatenate(parts),
        "starts": np.cumsum([0, *map(len, parts)], dtype=np.int64),
        "sources": np.array(sources, dtype=np.int64),
        "held_out": np.array(held, dtype=np.uint8),
    }


def _some(texts: Iterator[str], most: int) -> Iterator[list[str]]:
    while some := list(islice(texts, most)):
        yield some
