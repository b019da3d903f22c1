"""Which of several bases is better, by the loss on the same held-out documents of the corpus.

Run: python -m bench.carried_base.compare --corpus DIR gpt2-mini build/gpt2-mini

They must share one tokenizer: a loss in nats a token says nothing across two.
"""

import argparse
from pathlib import Path

import torch

from bench.carried_base import losses, model, tokens
from bench.carried_base.corpus import LISTING, CorpusError, read_listing
from bench.process import BUILD
from prefix_engine.checkpoint import folder_of


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the files of the listing")
    parser.add_argument("--listing", type=Path, default=LISTING)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("bases", nargs="+", help="names of carried bases, or folders")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        print(compare(args.bases, args.corpus, args.listing))
    except (CorpusError, ValueError) as error:
        raise SystemExit(str(error)) from error


def compare(bases: list[str], folder: Path, listing: Path) -> str:
    """The table of the losses of `bases`.

    Raises:
        CorpusError: see there.
        ValueError: the bases have different tokenizers.
    """
    corpus = read_listing(listing)
    corpus.check(folder)
    places = {name: folder_of(name) for name in bases}
    read = {name: tokens.load_tokenizer(place / "tokenizer.json") for name, place in places.items()}
    if len({tokenizer.to_str() for tokenizer in read.values()}) > 1:
        raise ValueError("the bases have different tokenizers: compare bases of one tokenizer.json")
    tokenizer = read[bases[0]]
    encoded = tokens.encode(folder, corpus, tokenizer, BUILD / "carried-base")
    return losses.table(
        {name: losses.score(model.load(place), encoded, corpus, tokenizer) for name, place in places.items()}
    )


if __name__ == "__main__":
    main()
