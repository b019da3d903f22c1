"""PEFT with one adapter for each prefix, switched request by request: all that it offers for prefix tuning."""

from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model

from bench.contestant import Stopwatch, serve
from bench.contestants import transformers_model
from bench.workload import Workload


class Peft:
    """One request after another."""

    def load(self, folder: str, device: str) -> None:
        """Load the model; adapters come with the first run that names them."""
        self._model = transformers_model.load(folder, device)
        self._peft: Any = None

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve the requests in turn; making the adapters is not timed."""
        self._add_adapters(workload)
        prompts = torch.tensor(workload.prompts(self._model.config.vocab_size), device=self._model.device)
        watch, tokens = Stopwatch(), []
        for number, prompt in enumerate(prompts):
            self._peft.set_adapter(_name(workload.m, number % workload.prefixes))
            tokens += transformers_model.generate(self._peft, prompt[None], workload.new).tolist()
        return {"seconds": watch(), "tokens": tokens}

    def _add_adapters(self, workload: Workload) -> None:
        config = self._model.config
        settings = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=workload.m,
            token_dim=config.n_embd,
            num_layers=config.n_layer,
            num_attention_heads=config.n_head,
            num_transformer_submodules=1,
            inference_mode=True,
        )
        for number, tensor in enumerate(transformers_model.prefixes(self._model, workload)):
            name = _name(workload.m, number)
            if self._peft is None:
                self._peft = get_peft_model(self._model, settings, adapter_name=name).eval()
            elif name in self._peft.prompt_encoder:
                continue
            else:
                self._peft.add_adapter(name, settings)
            self._peft.prompt_encoder[name].to(self._model.device)
            embeddings = tensor.permute(3, 0, 1, 2, 4).reshape(workload.m, -1)
            self._peft.prompt_encoder[name].embedding.weight.data.copy_(embeddings)


def _name(m: int, number: int) -> str:
    return f"m{m}-{number}"


if __name__ == "__main__":
    serve(Peft())
