"""The folder of a trained base: weights, config, tokenizer, losses as JSON and a picture, and the card from them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.figure import Figure
from safetensors.torch import save_file
from tokenizers import Tokenizer

from bench.carried_base import losses, model, state, tokens
from bench.carried_base.card_text import text
from bench.carried_base.corpus import Corpus
from bench.carried_base.recipe import Recipe
from bench.carried_base.train import Run
from trainer_worker.results import FAINT, OURS, PICTURES

MOST_BYTES = 32_000_000


@dataclass(frozen=True, slots=True)
class Result:
    """What a finished run was of."""

    recipe: Recipe
    corpus: Corpus
    encoded: tokens.Encoded
    tokenizer: Tokenizer
    run: Run


def before(
    folder: Path, start: Any, encoded: tokens.Encoded, corpus: Corpus, tokenizer: Tokenizer
) -> dict[str, Any]:
    """Held-out losses of the weights that a run begins with: scored once, then taken from the folder."""
    path = folder / "heldout_loss.json"
    if not path.exists():
        _write_json(path, {"before": losses.score(start, encoded, corpus, tokenizer)})
    held: dict[str, Any] = json.loads(path.read_text())["before"]
    return held


def write(folder: Path, result: Result, trained: Any, before: dict[str, Any] | None) -> None:
    """Write the whole folder; `before` are the held-out losses of the weights that the run began with."""
    save_base(folder, trained, result.tokenizer)
    # What is scored is what is shipped: the file's float16, not the float32 in memory.
    shipped = losses.score(model.load(folder), result.encoded, result.corpus, result.tokenizer)
    found = ({"before": before} if before else {}) | {"after": shipped}
    _write_json(folder / "heldout_loss.json", found)
    recipe = result.recipe.as_json() | {
        "threads": result.run.threads,
        "start_sha256": result.run.start,
        "torch": torch.__version__,
        "corpus": result.corpus.digest,
        "parameters": sum(weight.numel() for weight in trained.parameters()),
        "file_bytes": (folder / "model.safetensors").stat().st_size,
        "tokens_in_corpus": len(result.encoded.ids),
        "tokens_held_out": int(np.diff(result.encoded.starts)[result.encoded.held_out].sum()),
        "documents_held_out": int(result.encoded.held_out.sum()),
    }
    _write_json(folder / "recipe.json", recipe)
    draw(state.read_log(folder), folder / "loss.svg")
    render(folder, result.corpus)


def render(folder: Path, corpus: Corpus) -> None:
    """Write README.md from what lies in the folder."""
    said = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "recipe", "heldout_loss")
    }
    card = text(said["config"], said["recipe"], said["heldout_loss"], state.read_log(folder), corpus)
    (folder / "README.md").write_text(card, encoding="utf-8")


def save_base(folder: Path, trained: Any, tokenizer: Tokenizer) -> None:
    """model.safetensors in float16 with the tied head stored once, config.json, the tokenizer.

    Raises:
        ValueError: the file is larger than what the project carries.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: weight.detach().half() for name, weight in trained.named_parameters()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    size = (folder / "model.safetensors").stat().st_size
    if size >= MOST_BYTES:
        raise ValueError(
            f"model.safetensors has {size} bytes, at most {MOST_BYTES} are carried: train a smaller shape"
        )
    trained.config.save_pretrained(folder)
    tokens.save_tokenizer(tokenizer, folder, trained.config.n_positions)


def draw(log: list[dict[str, Any]], path: Path) -> None:
    """The training loss of every update, and its mean over the last fiftieth of the run, as SVG."""
    updates = [entry for entry in log if "loss" in entry]
    at = np.array([entry["tokens"] for entry in updates]) / 1e6
    found = np.array([entry["loss"] for entry in updates])
    width = max(1, len(found) // 50)
    with mpl.rc_context(PICTURES):
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.add_subplot()
        axes.plot(at, found, color=FAINT, linewidth=0.6, label="each update")
        smooth = np.convolve(found, np.ones(width) / width, "valid")
        axes.plot(at[width - 1 :], smooth, color=OURS, label=f"mean of {width} updates")
        axes.set(xlabel="tokens of this run, millions", ylabel="training loss, nats a token")
        axes.legend()
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
