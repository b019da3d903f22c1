"""Loss on the held-out documents by source, for one base or several, on the same tokens.

A document is read behind one end token, cut to 512 tokens for the numbers by source; for those by position
it is cut to the base's positions. Bits a byte count the UTF-8 bytes of the tokens that were scored.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer as Backend

from bench.carried_base import model as models
from bench.carried_base.corpus import Corpus
from bench.carried_base.tokens import END_ID, Encoded
from prefix_engine.tokenizer import Tokenizer

CUT = 512
POSITIONS = (0, 256, 512, 1024)
ROWS = 8192  # tokens of a batch, with padding
_IGNORED = -100


def score(model: Any, encoded: Encoded, corpus: Corpus, tokenizer: Backend) -> dict[str, Any]:
    """Losses in nats a token, bits a byte and tokens scored: `by_source` (and `all`), `by_position`."""
    width = bytes_of(tokenizer)
    longest = model.config.n_positions
    sums = np.zeros((len(corpus.texts), 3))  # nats, tokens, bytes
    nats, tokens = np.zeros(longest), np.zeros(longest)
    for places in _batches(encoded, longest):
        targets = torch.full((len(places), min(_longest(encoded, places), longest)), _IGNORED)
        for row, place in enumerate(places):
            ids = encoded.document(place)[:longest].astype(np.int64)
            targets[row, : len(ids)] = torch.from_numpy(ids)
        ids = torch.cat([torch.full((len(places), 1), END_ID), targets[:, :-1].clamp(min=0)], dim=1)
        found = models.losses(model, ids, targets).double().numpy()
        real = (targets != _IGNORED).numpy()
        nats[: found.shape[1]] += found.sum(0)
        tokens[: found.shape[1]] += real.sum(0)
        for row, place in enumerate(places):
            scored = width[encoded.document(place)[: min(CUT, longest)]].sum()
            sums[encoded.sources[place]] += (found[row, :CUT].sum(), real[row, :CUT].sum(), scored)
    named = {text.name: sums[place] for place, text in enumerate(corpus.texts) if sums[place, 1]}
    spans = [(a, b) for a, b in pairwise(POSITIONS) if tokens[a:b].sum()]
    return {
        "by_source": {name: _told(*held) for name, held in (named | {"all": sums.sum(0)}).items()},
        "by_position": {
            f"{a} to {b - 1}": {
                "loss": round(nats[a:b].sum() / tokens[a:b].sum(), 4),
                "tokens": int(tokens[a:b].sum()),
            }
            for a, b in spans
        },
    }


def bytes_of(tokenizer: Backend) -> np.ndarray:
    """UTF-8 bytes of each token id: `[vocab]`, int64; 0 for the end token."""
    own = Tokenizer(tokenizer, END_ID)
    return np.array([len(own.token_bytes(i)) for i in range(tokenizer.get_vocab_size())], dtype=np.int64)


def table(scores: dict[str, dict[str, Any]]) -> str:
    """Markdown: a line a source and a line a span of positions, two columns a base, by its name in `scores`."""
    heads = [f"{name}, nats a token | {name}, bits a byte" for name in scores]
    lines = [f"| held-out text | tokens | {' | '.join(heads)} |", f"|{'---|' * (2 + 2 * len(scores))}"]
    first = next(iter(scores.values()))
    for name, said in first["by_source"].items():
        cells = [
            f"{one['by_source'][name]['loss']:.3f} | {one['by_source'][name]['bits_per_byte']:.3f}"
            for one in scores.values()
        ]
        lines.append(f"| {name} | {said['tokens']:,} | {' | '.join(cells)} |")
    for span, said in first["by_position"].items():
        cells = [f"{one['by_position'][span]['loss']:.3f} | " for one in scores.values()]
        lines.append(f"| tokens at positions {span} | {said['tokens']:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _batches(encoded: Encoded, longest: int) -> list[list[int]]:
    """Places of the held-out documents, those of like length together."""
    held = [int(place) for place in np.flatnonzero(encoded.held_out)]
    held.sort(key=lambda place: len(encoded.document(place)))
    batches: list[list[int]] = [[]]
    for place in held:
        if batches[-1] and (len(batches[-1]) + 1) * min(len(encoded.document(place)), longest) > ROWS:
            batches.append([])
        batches[-1].append(place)
    return [some for some in batches if some]


def _longest(encoded: Encoded, places: list[int]) -> int:
    return max(len(encoded.document(place)) for place in places)


def _told(nats: float, tokens: float, size: float) -> dict[str, Any]:
    return {
        "loss": round(nats / tokens, 4),
        "bits_per_byte": round(nats / math.log(2) / size, 4),
        "tokens": int(tokens),
    }
