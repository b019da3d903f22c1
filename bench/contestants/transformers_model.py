"""What the contestants over transformers share: the model, quiet, and greedy generation of a fixed length."""

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from bench.contestants.tensors import prefix_tensor
from bench.workload import Workload


def load(folder: str, device: str) -> Any:
    """The model in fp32, in eval mode, on a device."""
    set_verbosity_error()
    disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_grad_enabled(False)
    return (
        GPT2LMHeadModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval().to(device)
    )


def generate(model: Any, ids: Tensor, new: int, **more: Any) -> Tensor:
    """The new tokens `[rows, new]` behind ids `[rows, n]`."""
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        **more,
    )
    return out[:, ids.shape[1] :]


def prefixes(model: Any, workload: Workload) -> list[Tensor]:
    """The distinct prefixes of a workload."""
    config = model.config
    shape = (config.n_layer, config.n_head, config.n_embd // config.n_head)
    made = (prefix_tensor(*shape, workload.m, number) for number in range(workload.prefixes))
    return [tensor.to(model.device) for tensor in made]
