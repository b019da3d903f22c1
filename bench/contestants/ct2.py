"""CTranslate2 with static batches, without prefixes: it has no place for them."""

import json
import os
from pathlib import Path
from typing import Any

import ctranslate2
import numpy as np
from ctranslate2.specs import common_spec, transformer_spec
from safetensors.numpy import load_file

from bench.contestant import Stopwatch, serve
from bench.workload import Workload


class CTranslate2:
    """All requests of a workload in one `generate_batch`."""

    def load(self, folder: str, device: str, compute_type: str) -> None:
        """Convert the model once, without torch, and load it."""
        place = Path(folder) / "ctranslate2"
        config = json.loads((Path(folder) / "config.json").read_text())
        if not place.exists():
            _convert(Path(folder), config, place)
        self._vocab = config["vocab_size"]
        threads = int(os.environ["OMP_NUM_THREADS"])
        self._generator = ctranslate2.Generator(
            str(place), device=device, compute_type=compute_type, inter_threads=1, intra_threads=threads
        )

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve the prompts; the end token is kept from ending a text by the shortest length."""
        prompts = [[str(token) for token in prompt] for prompt in workload.prompts(self._vocab)]
        watch = Stopwatch()
        answers = self._generator.generate_batch(
            prompts,
            max_length=workload.new,
            min_length=workload.new,
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=[],
        )
        seconds = watch()
        return {"seconds": seconds, "tokens": [list(map(int, a.sequences_ids[0])) for a in answers]}


def _convert(folder: Path, config: dict[str, Any], place: Path) -> None:
    """What its converter for transformers does, from the safetensors file; vocabulary words are the ids."""
    weights = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    spec = transformer_spec.TransformerDecoderModelSpec.from_config(
        config["n_layer"],
        config["n_head"],
        pre_norm=True,
        activation=common_spec.Activation.GELUTanh,
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = tensors["wte.weight"]
    decoder.position_encodings.encodings = tensors["wpe.weight"]
    decoder.projection.weight = tensors["wte.weight"]
    _norm(decoder.layer_norm, tensors, "ln_f")
    for i, layer in enumerate(decoder.layer):
        _norm(layer.self_attention.layer_norm, tensors, f"h.{i}.ln_1")
        _linear(layer.self_attention.linear[0], tensors, f"h.{i}.attn.c_attn")
        _linear(layer.self_attention.linear[1], tensors, f"h.{i}.attn.c_proj")
        _norm(layer.ffn.layer_norm, tensors, f"h.{i}.ln_2")
        _linear(layer.ffn.linear_0, tensors, f"h.{i}.mlp.c_fc")
        _linear(layer.ffn.linear_1, tensors, f"h.{i}.mlp.c_proj")
    spec.register_vocabulary([str(token) for token in range(config["vocab_size"])])
    end = str(config["vocab_size"] - 1)
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = end
    spec.validate()
    spec.optimize(quantization=None)
    making = place.with_suffix(f".{os.getpid()}")
    making.mkdir()
    spec.save(str(making))
    making.rename(place)


def _norm(spec: Any, tensors: dict[str, Any], name: str) -> None:
    spec.gamma, spec.beta = tensors[f"{name}.weight"], tensors[f"{name}.bias"]


def _linear(spec: Any, tensors: dict[str, Any], name: str) -> None:
    """GPT-2 stores `[in, out]`, CTranslate2 `[out, in]`."""
    spec.weight = np.ascontiguousarray(tensors[f"{name}.weight"].T)
    spec.bias = tensors[f"{name}.bias"]


if __name__ == "__main__":
    serve(CTranslate2())
