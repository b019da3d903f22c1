"""The words of the model card; every number of the run in them comes out of the run's own files."""

from typing import Any

from bench.carried_base.corpus import Corpus
from bench.carried_base.losses import CUT, table
from bench.carried_base.tokens import HELD_OUT_ONE_IN

# The carried base before this recipe was kept; what is known of it.
FIRST_RUN = "d682678603ec5cf26e6b30a94ff387ac0d3903510ceba8ad9ccb307f2b36fc56"  # SHA-256 of its weights
FIRST_RUN_TEXT = """\
What it goes on from was trained from scratch on the same text by 2,725 updates of 24 x 256 tokens (16.7 M tokens, 0.6 of
an epoch): Muon (rate 0.02) and AdamW (rate 3e-3), warm-up, constant, then linear to 2%. Its script, its seed and the
order of its documents were not kept, three of the lists of credits were read as text by mistake, and the rows that it
held out, the first 200,000 tokens of its shuffled stream, could not be told from the counts that it left. So it may have
read the rows that are held out here, 0.6 times on average, which flatters the losses "before", and less those "after".
"""


def text(
    config: dict[str, Any],
    recipe: dict[str, Any],
    heldout: dict[str, Any],
    log: list[dict[str, Any]],
    corpus: Corpus,
) -> str:
    """README.md of a base: `config`, `recipe` and `heldout` as in its folder, `log` as its lines."""
    return "\n".join(
        [
            _head(recipe),
            _facts(config, recipe, log),
            _losses(recipe, heldout),
            _again(recipe),
            _sources(corpus),
            _limits(recipe),
        ]
    )


def _head(recipe: dict[str, Any]) -> str:
    scratch = recipe["start"] == "none"
    origin = "from scratch" if scratch else f"going on from the weights of `{recipe['start']}`"
    return f"""\
# gpt2-mini: a small GPT-2-architecture base that can be carried

A language model of GPT-2's architecture (transformers `GPT2LMHeadModel`), trained on public English text, {origin}, so
that the service has a real frozen base where no model hub can be reached. It is a base for steering, not a source of facts.
"""


def _facts(config: dict[str, Any], recipe: dict[str, Any], log: list[dict[str, Any]]) -> str:
    last = [entry for entry in log if "loss" in entry][-1]
    decays_from = recipe["updates"] - round(recipe["updates"] * recipe["decay"])
    rows = {
        "layers, width, heads, head_dim": f"{config['n_layer']}, {config['n_embd']}, {config['n_head']}, "
        f"{config['n_embd'] // config['n_head']}",
        "positions, vocabulary": f"{config['n_positions']:,}; {config['vocab_size']:,} (byte-level BPE trained on the "
        "same text; `<\\|endoftext\\|>` = id 0 is both bos and eos)",
        "parameters": f"{recipe['parameters']:,} (input and output embeddings tied, stored once)",
        "file": f"`model.safetensors`, float16, {recipe['file_bytes'] / 1e6:.1f} MB; load with dtype float32",
        "text": f"{recipe['tokens_in_corpus'] / 1e6:.1f} M tokens; documents shuffled, each closed by the end token; "
        f"{recipe['documents_held_out']:,} documents of {recipe['tokens_held_out']:,} tokens held out",
        "this training": f"{recipe['updates']:,} updates, {last['tokens'] / 1e6:.1f} M tokens, in "
        f"{last['seconds'] / 60:.0f} minutes; {recipe['threads']} threads, float32, no dropout, "
        f"seed {recipe['seed']}, torch {recipe['torch']}",
        "optimiser": f"Muon for the matrices of the blocks (rate {recipe['matrices_rate']:g}, updates of AdamW's size, "
        f"momentum {recipe['momentum']}, weight decay {recipe['matrices_decay']}), AdamW for embeddings, biases and norms "
        f"(rate {recipe['rest_rate']:g}, betas {recipe['betas'][0]}/{recipe['betas'][1]}); warm-up "
        f"{recipe['warmup']} updates, constant to update {decays_from:,}, then linear to zero; clip {recipe['clip']}",
        "windows": _windows(recipe),
    }
    shown = "\n".join(["| | |", "|---|---|", *(f"| {name} | {said} |" for name, said in rows.items())])
    first = f"\n{FIRST_RUN_TEXT}" if recipe["start_sha256"] == FIRST_RUN else ""
    return f"{shown}\n{first}"


def _windows(recipe: dict[str, Any]) -> str:
    count = recipe["blocks"] * recipe["block"] // recipe["window"]
    short = f"{count} x {recipe['window']} tokens, in one half of the updates from position 0, in the other from a random one"
    if not recipe["long_every"]:
        return f"{short}; attention beyond {recipe['window']} tokens was not trained"
    return f"{short}; one update in {recipe['long_every']} has {recipe['blocks']} x {recipe['block']:,}"


def _losses(recipe: dict[str, Any], heldout: dict[str, Any]) -> str:
    started = (
        "" if recipe["start"] == "none" else f" `before` is `{recipe['start']}` as this training found it."
    )
    return f"""\
## Held-out loss

A document is held out if the first 8 bytes of the SHA-256 of its text, as a number, are divisible by {HELD_OUT_ONE_IN}: neither a
seed nor an order moves one. It is read from its beginning behind one end token; by source up to {CUT} tokens of it count,
by position all that fit. `after` is `model.safetensors` as it lies here.{started} The numbers are those of `heldout_loss.json`.

{table(heldout)}

![Training loss of every update, and its mean](loss.svg)
"""


def _again(recipe: dict[str, Any]) -> str:
    return f"""\
## Again

    python -m bench.carried_base --corpus DIR --out DIR --from {recipe["start"]} --updates {recipe["updates"]} \\
        --seed {recipe["seed"]} --rate {recipe["matrices_rate"]:g} --threads {recipe["threads"]}

trains on the files below, which lie outside the project and are checked by SHA-256 first; `recipe.json` has every setting
and the digest of the weights it began with. On the same CPU with the same torch it gives the same bits, also when it is
cut and run again. `python -m bench.carried_base.compare --corpus DIR BASE OTHER` scores bases on the held-out documents.
"""


def _sources(corpus: Corpus) -> str:
    lines = [
        f"| `{one.file}` | {one.what} | {one.source} | {one.licence} | {one.documents:,} | {one.text_bytes:,} | `{one.sha256}` |"
        for one in corpus.texts
    ]
    lists = "\n".join(f"- `{one.file}`: {one.what}; SHA-256 `{one.sha256}`" for one in corpus.credits)
    credits_of = f"\nLists of credits, which are not read as text:\n\n{lists}\n" if lists else ""
    body = "\n".join(lines)
    return f"""\
## Text and licences

| file | what it is | source (repository and commit) | licence | documents | bytes of text | SHA-256 |
|---|---|---|---|---|---|---|
{body}
{credits_of}
OpenStax: access for free at openstax.org; copyright Rice University; text changed (cut and joined). Tatoeba sentences are
by the contributors of the Tatoeba Project, Wikipedia's by its contributors. The fiction is in the public domain in the US by
its year, which says nothing of other countries. From the sources' text, markup, links, tables, code and formulas were
removed, and long lines that repeat were kept once; that cleaning is described here and not scripted. No text of E2E, WebNLG,
SciTLDR, Aesop, Dickinson, the recipe, quiz and commit-message sets is in it; its dialogues and word
problems are the training splits of the data sets whose other splits are `booking_assistant` and `maths_tutor`.
"""


def _limits(recipe: dict[str, Any]) -> str:
    tokens = recipe["updates"] * recipe["blocks"] * recipe["block"]
    return f"""\
## Limits

Short-range fluency, little knowledge, repetition under greedy decoding, English only, biases of its sources. This training
read {tokens / 1e6:.1f} M tokens, few for the size of the model: it is under-trained. One run of one seed; `log.jsonl` has the loss,
the rate and the seconds of every update.
"""
