"""Train the carried base from its corpus, or go on where a cut run was.

Run: python -m bench.carried_base --corpus DIR --out build/gpt2-mini [--minutes 60] [--threads 2]
"""

import argparse
from dataclasses import replace
from pathlib import Path

from bench.carried_base import card, model, state, tokens
from bench.carried_base.corpus import LISTING, CorpusError, read_listing, sha256_of
from bench.carried_base.recipe import Recipe
from bench.carried_base.train import Run, RunError
from bench.process import BUILD
from prefix_engine.checkpoint import folder_of


def main() -> None:
    """Check, encode, train, score, and write the folder of the new base."""
    args = arguments()
    try:
        make(args)
    except (CorpusError, RunError) as error:
        raise SystemExit(str(error)) from error


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="folder with the files of the listing")
    parser.add_argument("--listing", type=Path, default=LISTING, help="names and digests of the files")
    parser.add_argument("--out", type=Path, required=True, help="folder of the new base")
    parser.add_argument("--from", dest="start", default="gpt2-mini", help="a base to go on from, or none")
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="60 if neither is given")
    budget.add_argument("--updates", type=int, help="the same number gives the same weights again")
    parser.add_argument("--rate", type=float, help="highest rate of both optimisers")
    parser.add_argument("--seed", type=int, default=Recipe().seed)
    parser.add_argument("--threads", type=int, default=2, help="other sums are rounded with another number")
    return parser.parse_args(given)


def make(args: argparse.Namespace) -> None:
    """All of it.

    Raises:
        CorpusError, RunError: see there.
    """
    corpus = read_listing(args.listing)
    corpus.check(args.corpus)
    args.out.mkdir(parents=True, exist_ok=True)
    recipe = recipe_of(args)
    scratch = recipe.start == "none"
    if not scratch:
        tokenizer = tokens.load_tokenizer(folder_of(recipe.start) / "tokenizer.json")
    elif (args.out / "tokenizer.json").exists():  # of the run that goes on
        tokenizer = tokens.load_tokenizer(args.out / "tokenizer.json")
    else:
        tokenizer = tokens.train_tokenizer(args.corpus, corpus, recipe.vocab)
        tokens.save_tokenizer(tokenizer, args.out, recipe.block)
    encoded = tokens.encode(args.corpus, corpus, tokenizer, BUILD / "carried-base")
    trained = model.fresh(recipe) if scratch else model.load(folder_of(recipe.start))
    digest = "" if scratch else sha256_of(folder_of(recipe.start) / "model.safetensors")
    run = Run(tokens.stream(encoded, recipe.seed), corpus.digest, digest, args.out, args.threads)
    before = None if scratch else card.before(args.out, trained, encoded, corpus, tokenizer)
    if state.read(args.out) is None and not recipe.updates:
        recipe = run.planned(trained, recipe, args.minutes or 60)
    recipe = run.train(trained, recipe)
    card.write(args.out, card.Result(recipe, corpus, encoded, tokenizer, run), trained, before)
    print(f"{args.out}: README.md says what it is")


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The settings that the arguments ask for; from none the rates are those of the first run."""
    rate = args.rate or (3e-3 if args.start == "none" else Recipe().matrices_rate)
    recipe = Recipe(start=args.start, seed=args.seed, matrices_rate=rate, rest_rate=rate)
    return replace(recipe, updates=args.updates or 0)


if __name__ == "__main__":
    main()
