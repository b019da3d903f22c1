"""The frozen checkpoint with both its faces: transformers' model for every method, the product's base for prefixes."""

import copy
from dataclasses import dataclass

import torch
from transformers import AutoTokenizer, GPT2LMHeadModel
from transformers.utils.logging import disable_progress_bar

from prefix_engine.base import Base, from_transformers
from prefix_engine.checkpoint import folder_of
from prefix_engine.template import Template


@dataclass(frozen=True, slots=True, eq=False)
class Host:
    """One checkpoint.

    Attributes:
        model: transformers' model in eval mode; no method may change its weights.
        base: the same weights as the product sees them, with the tokenizer that all methods share.
        template: how a prompt and its completion become tokens; the product's own, for all methods alike.
    """

    model: GPT2LMHeadModel
    base: Base
    template: Template

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.base.device

    @property
    def size(self) -> int:
        """Number of parameters; the head is the token embedding and counts once."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.base.tokenizer.encode(text)

    def copy(self) -> GPT2LMHeadModel:
        """A model with weights of its own, all of which may be trained."""
        model = copy.deepcopy(self.model)
        model.requires_grad_(True)
        return model

    def shell(self) -> GPT2LMHeadModel:
        """A model with modules of its own over the frozen weights, for who puts something between them."""
        return copy.deepcopy(self.model, {id(weight): weight for weight in self.model.parameters()})


def open_host(name: str, device: str | None = None) -> Host:
    """Load a carried base, a folder, or a name on the model hub.

    Raises:
        BaseError: there is no such checkpoint; `--base` takes a folder with config.json, model.safetensors and
            tokenizer.json. Or it is not a GPT-2 as the product serves it.
        OSError: it cannot be read.
    """
    disable_progress_bar()
    place = folder_of(name)
    model = GPT2LMHeadModel.from_pretrained(place, use_safetensors=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(place, use_fast=True)
    base = from_transformers(name, model, tokenizer, device)
    model.to(base.device).eval().requires_grad_(False)
    return Host(model, base, Template.of(base.tokenizer))
