"""transformers with the prefixes stacked into one static batch: what somebody would write by hand."""

from typing import Any

import torch
from transformers import DynamicCache

from bench.contestant import Stopwatch, serve
from bench.contestants import transformers_model
from bench.workload import Workload


class Static:
    """All requests of a workload in one `generate`."""

    def load(self, folder: str, device: str) -> None:
        """Load the model."""
        self._model = transformers_model.load(folder, device)

    def run(self, workload: Workload) -> dict[str, Any]:
        """Stack, prefill, decode; generate wants ids for the cached positions too, and never reads them."""
        own = transformers_model.prefixes(self._model, workload)
        prompts = torch.tensor(workload.prompts(self._model.config.vocab_size), device=self._model.device)
        watch = Stopwatch()
        stacked = torch.stack([own[i % len(own)] for i in range(workload.requests)])
        cache = DynamicCache()
        for layer in range(stacked.shape[1]):
            cache.update(stacked[:, layer, 0], stacked[:, layer, 1], layer)
        ids = torch.cat([prompts.new_zeros(len(prompts), workload.m), prompts], 1)
        tokens = transformers_model.generate(self._model, ids, workload.new, past_key_values=cache).tolist()
        return {"seconds": watch(), "tokens": tokens}


if __name__ == "__main__":
    serve(Static())
