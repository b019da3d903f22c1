"""The words of the model card; every number in them comes out of the run's own files."""

from typing import Any

from bench.carried_base.corpus import Corpus
from bench.carried_base.losses import CUT, table
from bench.carried_base.tokens import HELD_OUT_ONE_IN


def text(
    config: dict[str, Any],
    recipe: dict[str, Any],
    heldout: dict[str, Any],
    log: list[dict[str, Any]],
    corpus: Corpus,
) -> str:
    """README.md of a base: `config`, `recipe` and `heldout` as in its folder, `log` as its lines."""
    parts = [
        "# gpt2-mini: a small GPT-2-architecture base that can be carried\n",
        f"A language model of GPT-2's architecture (transformers `GPT2LMHeadModel`), {_origin(recipe)}, so that the\n"
        "service has a real frozen base where no model hub can be reached. It is a base for steering, not a source\n"
        "of facts.\n",
        _facts(config, recipe, log),
        _losses(recipe, heldout),
        "![training loss](loss.svg)\n",
        _again(recipe),
        _sources(corpus),
        "## Limits\n\n"
        "Short-range fluency, little knowledge, repetition under greedy decoding, English only, biases of its\n"
        "sources. `log.jsonl` has the loss, the rate and the seconds of every update.\n",
    ]
    return "\n".join(parts)


def _origin(recipe: dict[str, Any]) -> str:
    if recipe["start"] == "none":
        return "trained from scratch on public English text"
    return f"trained on public English text, going on from the weights of `{recipe['start']}`"


def _facts(config: dict[str, Any], recipe: dict[str, Any], log: list[dict[str, Any]]) -> str:
    done = [entry for entry in log if "loss" in entry][-1]
    each = recipe["blocks"] * recipe["block"]
    read = recipe["updates"] * each
    trained = recipe["tokens_in_corpus"] - recipe["tokens_held_out"]
    every = recipe["long_every"]
    windows = f"{recipe['blocks'] * recipe['block'] // recipe['window']} x {recipe['window']} tokens"
    if every:
        windows += f", one in {every} of {recipe['blocks']} x {recipe['block']:,}"
    rows = {
        "layers, width, heads, head_dim": f"{config['n_layer']}, {config['n_embd']}, {config['n_head']}, "
        f"{config['n_embd'] // config['n_head']}",
        "positions, vocabulary": f"{config['n_positions']:,}; {config['vocab_size']:,} (byte-level BPE; "
        "`<\\|endoftext\\|>` = id 0 is both bos and eos)",
        "parameters": f"{recipe['parameters']:,} (the tied output embedding is stored once)",
        "file": f"`model.safetensors`, float16, {recipe['file_bytes'] / 1e6:.1f} MB; load with dtype float32",
        "text": f"{recipe['tokens_in_corpus'] / 1e6:.1f} M tokens; {recipe['tokens_held_out']:,} of them in "
        f"{recipe['documents_held_out']:,} documents held out",
        "this training": f"{recipe['updates']:,} updates of {windows} = {read / 1e6:.1f} M tokens "
        f"({read / trained:.2f} of an epoch), {done['seconds'] / 60:.0f} minutes with {recipe['threads']} threads, "
        f"float32, no dropout, seed {recipe['seed']}, torch {recipe['torch']}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows.items()), ""])


def _losses(recipe: dict[str, Any], heldout: dict[str, Any]) -> str:
    return ""


def _again(recipe: dict[str, Any]) -> str:
    return ""


def _sources(corpus: Corpus) -> str:
    return ""
