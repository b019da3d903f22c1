"""The random GPT-2 that all contestants load: made once, with seed 0, in the git-ignored folder."""

import os
import shutil
from pathlib import Path

from bench.process import BUILD
from bench.workload import SHAPES


def model_folder(shape: str) -> Path:
    """Folder with config.json, model.safetensors and a byte tokenizer; written on the first call."""
    folder = BUILD / f"gpt2-{shape}-random"
    if folder.exists():
        return folder
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - slow, and needed once
    from transformers.utils.logging import disable_progress_bar  # noqa: PLC0415

    from prefix_engine.testing import END, byte_tokenizer, tiny_model  # noqa: PLC0415

    disable_progress_bar()
    making = folder.with_name(f"{folder.name}.{os.getpid()}")
    tiny_model(**SHAPES[shape], spread=0.02, seed=0).save_pretrained(making)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token=END).save_pretrained(making)
    try:
        making.rename(folder)  # whole or not at all, also when two runs make it
    except OSError:
        shutil.rmtree(making)
    return folder
