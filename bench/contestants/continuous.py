"""transformers' own continuous batching, without prefixes: it has no place for them."""

import time
from typing import Any

from transformers import ContinuousBatchingConfig, GenerationConfig

from bench.contestant import Stopwatch, serve
from bench.contestants import transformers_model
from bench.workload import Workload


class Continuous:
    """All requests of a workload in one `generate_batch`."""

    def load(self, folder: str, device: str) -> None:
        """Load the model; its paged attention is asked for by name."""
        self._model = transformers_model.load(folder, device)
        self._model.set_attn_implementation("sdpa")

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve the prompts; as many blocks as they need."""
        page = 32
        slots = sum(length + workload.new for length in workload.lengths)
        batching = ContinuousBatchingConfig(
            page_size=page,
            num_blocks=slots // page + 2 * workload.requests,
            max_batch_tokens=512,
            allow_block_sharing=False,
        )
        generation = GenerationConfig(
            max_new_tokens=workload.new, do_sample=False, eos_token_id=-1, pad_token_id=0
        )
        prompts = workload.prompts(self._model.config.vocab_size)
        watch, begun = Stopwatch(), time.perf_counter()
        answers = self._model.generate_batch(
            prompts,
            generation_config=generation,
            continuous_batching_config=batching,
            record_timestamps=True,
        )
        whole = watch()
        # To the last token: its thread is ended behind it, which no server would do between two requests.
        last = max((at for answer in answers.values() for at in answer.timestamps or ()), default=0.0)
        seconds = last - begun if begun < last < begun + whole else whole
        ordered = sorted(answers.items(), key=lambda item: int(item[0].rpartition("_")[2]))
        return {"seconds": seconds, "tokens": [answer.generated_tokens for _, answer in ordered]}


if __name__ == "__main__":
    serve(Continuous())
