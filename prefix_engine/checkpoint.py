"""A GPT-2 checkpoint as it lies: config.json, model.safetensors, tokenizer.json, in a folder or on the hub.

The usual form is read by the libraries that transformers reads it with, and not by transformers: to import it and to
ask it takes more of a processor than all else before a process's first token, 150 MB that stay and two hundred
thousand objects that every full round of the garbage collector looks at; and each job trains in a process of its own.
It is asked for what it would read otherwise than these libraries do: weights in several files, a config in other
models' words, a tokenizer that it makes anew.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor

from prefix_engine.mapped import Mapping, map_weights

log = logging.getLogger(__name__)

CARRIED = Path(__file__).parent / "bases"
_FILES = (
    "config.json", "model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
)  # fmt: skip
_HEAD = "lm_head.weight"
_BODY = "transformer."  # checkpoints of the body alone leave it out
# A GPT-2's weights. What else there may be: the head, which is the token embedding once more, masks that old releases
# of transformers kept, and what others add.
_WEIGHT = re.compile(
    r"(transformer\.)?(wte|wpe|ln_f|h\.\d+\.(ln_[12]|attn\.c_attn|attn\.c_proj|mlp\.c_fc|mlp\.c_proj))\.(weight|bias)"
)
# GPT2Config.attribute_map: transformers takes them for GPT-2's own, and before these.
_ALIASES = {"hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings"}
# The classes that take tokenizer.json as it is; GPT2Tokenizer makes a tokenizer anew of its vocabulary and merges.
_AS_IT_IS = {"PreTrainedTokenizerFast", "TokenizersBackend"}
_DAMAGED = (OSError, ValueError, TypeError, AttributeError, RuntimeError, SafetensorError)  # or absent
_MORE_TOKENS = ("special_tokens_map.json", "added_tokens.json")


class BaseError(Exception):
    """The checkpoint cannot be served: not GPT-2, not safetensors, or not found."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What was read.

    Attributes:
        config: config.json.
        weights: in float32 on the CPU, by GPT-2's names (`wte.weight`, `h.0.attn.c_attn.weight`).
        tokenizer: byte-level BPE.
        mapping: the file that the weights are views of, read-only; None if they are this process's own.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]
    tokenizer: Tokenizer
    mapping: Mapping | None


def folder_of(name: str) -> Path:
    """Where a base's files lie: of a carried one, of a folder, or of a hub name, which is fetched if it must be.

    Raises:
        BaseError: there is no such folder, nor such a name on a hub that answers or in its cache.
    """
    carried = CARRIED / name
    if (carried / "config.json").is_file():
        return carried
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - slow, and only needed here
    from huggingface_hub.errors import IncompleteSnapshotError  # noqa: PLC0415
    from huggingface_hub.utils.tqdm import disable_progress_bars  # noqa: PLC0415

    disable_progress_bars()
    try:
        return Path(snapshot_download(name, allow_patterns=list(_FILES)))
    except Exception as error:  # noqa: BLE001 - whatever happens on the way, what was fetched before will do
        try:
            return Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=True))
        except IncompleteSnapshotError as part:  # of it may be all that is needed
            return Path(part.snapshot_path)
        except (OSError, ValueError):
            text = f"there is no folder and no checkpoint on the hub named {name!r}: {error}"
            raise BaseError(text) from error


def read_checkpoint(name: str, *, mapped: bool) -> Checkpoint:
    """Read a base's files.

    Args:
        name: see `folder_of`.
        mapped: the weights are to lie in a file that others map too, if that can be.

    Raises:
        BaseError: they are absent, damaged or not in safetensors.
    """
    folder = folder_of(name)
    try:
        config = _object(folder / "config.json")
        tokenizer = _tokenizer(folder)
        path = folder / "model.safetensors"
        if not path.is_file() or _ALIASES & set(config):
            return _by_transformers(folder, tokenizer)
        weights, mapping = _weights(path, mapped=mapped)
        return Checkpoint(config, weights, tokenizer, mapping)
    except _DAMAGED as error:
        raise BaseError(f"no GPT-2 checkpoint in safetensors at {name!r}: {error}") from error


def body_of(model: Any) -> dict[str, Tensor]:
    """Weights of a transformers `GPT2LMHeadModel` without its head, by GPT-2's names.

    Raises:
        BaseError: the head is another matrix than the token embedding.
    """
    weights = dict(model.transformer.named_parameters())
    _check_head(model.lm_head.weight, weights["wte.weight"])
    return weights


def _check_head(head: Tensor, embedding: Tensor) -> None:
    """Refuse a head that differs: transformers takes it for one of its own, whatever the config says of ties."""
    if head is not embedding and not torch.equal(head, embedding):
        raise BaseError(f"{_HEAD} must be the token embedding, and it is another matrix")


def _object(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _weights(path: Path, *, mapped: bool) -> tuple[dict[str, Tensor], Mapping | None]:
    with safe_open(path, "pt") as file:
        names = list(file.keys())
        own = [name for name in names if _WEIGHT.fullmatch(name)]
        wanted = {name.removeprefix(_BODY): name for name in own}
        if len(wanted) < len(own):
            raise ValueError("model.safetensors: a weight has two names, with and without `transformer.`")
        if "wte.weight" not in wanted and _HEAD in names:  # safetensors' save_model keeps one of the two
            wanted["wte.weight"] = _HEAD
        elif _HEAD in names:
            _check_head(file.get_tensor(_HEAD), file.get_tensor(wanted["wte.weight"]))
        if mapped:
            found, mapping = map_weights(path, set(wanted.values()))
        else:
            found, mapping = {name: file.get_tensor(name).float() for name in wanted.values()}, None
    return {name: found[there] for name, there in wanted.items()}, mapping


def _by_transformers(folder: Path, tokenizer: Tokenizer) -> Checkpoint:
    from transformers import GPT2LMHeadModel  # noqa: PLC0415 - see above
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    disable_progress_bar()
    model = GPT2LMHeadModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32)
    log.warning(
        "base.not_shared why=%s", "weights in several files, or a config that transformers has to read"
    )
    return Checkpoint(model.config.to_dict(), body_of(model), tokenizer, None)


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        return _as_it_is(folder) if _is_as_it_is(folder) else _made_by_transformers(folder)
    except Exception as error:  # tokenizers raises nothing narrower
        raise ValueError(f"tokenizer.json: {error}") from error


def _made_by_transformers(folder: Path) -> Tokenizer:
    from transformers import AutoTokenizer  # noqa: PLC0415 - see above

    made: Tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True).backend_tokenizer
    return made


def _as_it_is(folder: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.post_processor is None:
        # As transformers does, so that fingerprints are those of bases that it has read: it adds nothing to a text.
        tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    return tokenizer


def _is_as_it_is(folder: Path) -> bool:
    """Whether transformers takes tokenizer.json without a change: no other class, no token that is named elsewhere."""
    if not all((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return False
    told, made = _object(folder / "tokenizer_config.json"), _object(folder / "tokenizer.json")
    special = {token.get("content") for token in made.get("added_tokens", ()) if token.get("special")}
    named = [value for key, value in told.items() if key.endswith("_token") and value is not None]
    lists = [value for key, value in told.items() if key.endswith(("_tokens", "_tokens_decoder")) and value]
    return (
        told.get("tokenizer_class") in _AS_IT_IS
        and not lists
        and not made.get("padding")  # whose token transformers adds
        and not any((folder / name).is_file() for name in _MORE_TOKENS)
        and all(token is False or (isinstance(token, str) and token in special) for token in named)
    )
