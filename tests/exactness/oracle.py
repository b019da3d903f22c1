"""What transformers and PEFT say about one row by itself."""

from dataclasses import dataclass

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch import Tensor
from transformers import DynamicCache

from prefix_engine import Prefix


@dataclass(frozen=True)
class Answer:
    """Greedy tokens `[n]` and the logits `[n, vocab]` that they were the best of."""

    tokens: tuple[int, ...]
    logits: Tensor

    def gap(self, step: int) -> float:
        """Distance of the two best logits."""
        first, second = self.logits[step].topk(2).values.tolist()
        return first - second


def answer(model, prefix: Prefix | None, prompt: tuple[int, ...], count: int) -> Answer:
    """Continue `prompt` by `count` greedy tokens, this row alone."""
    with torch.no_grad():
        if prefix is None:
            return _generate(model, prompt, count)
        if prefix.position_offset:
            return _generate(_with_peft(model, prefix), prompt, count)
        return _from_zero(model, prefix, prompt, count)


def _generate(model, prompt, count) -> Answer:
    ids = torch.tensor([prompt])
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    tokens = tuple(out.sequences[0, len(prompt) :].tolist())
    return Answer(tokens, torch.cat(list(out.logits)).float())


def _with_peft(model, prefix: Prefix):
    config = model.config
    peft = get_peft_model(
        model,
        PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=prefix.m,
            token_dim=config.n_embd,
            num_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_transformer_submodules=1,
            inference_mode=True,
        ),
    )
    encoder = peft.prompt_encoder["default"]
    encoder.embedding.weight.data.copy_(prefix.to_peft())
    return peft.eval()


def _from_zero(model, prefix: Prefix, prompt, count) -> Answer:
    """Text at position 0, the prefix in the cache: what no library writes down, so spelled out here."""
    cache = DynamicCache()
    for layer, (key, value) in enumerate(prefix.tensor):
        cache.update(key[None], value[None], layer)
    fed, at = torch.tensor([prompt]), 0
    tokens, logits = [], []
    for _ in range(count):
        places = torch.arange(at, at + fed.shape[1])[None]
        out = model(input_ids=fed, position_ids=places, past_key_values=cache, use_cache=True)
        logits.append(out.logits[0, -1].float())
        tokens.append(int(logits[-1].argmax()))
        at += fed.shape[1]
        fed = torch.tensor([[tokens[-1]]])
    return Answer(tuple(tokens), torch.stack(logits))
