"""vLLM on the CPU in fp32, without prefixes: it has no place for them."""

import os
from typing import Any

from bench.contestant import Missing, Stopwatch, serve
from bench.workload import Workload

# In one process, which sleeps between rounds; all the cores that the others may use.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ["VLLM_TARGET_DEVICE"] = "cpu"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"

from vllm import LLM, SamplingParams


class Vllm:
    """All requests of a workload in one `generate`, continuously batched."""

    def load(self, folder: str, device: str, *, eager: bool) -> None:
        """Load the model, compiled unless `eager`; every run prefills its prompts again, as the others do.

        Raises:
            Missing: of vLLM only the build for CPUs is installed.
        """
        if device != "cpu":
            raise Missing("not installed: bench-peers brings the build for CPUs")
        self._llm = LLM(
            model=folder,
            dtype="float32",
            skip_tokenizer_init=True,
            enforce_eager=eager,
            enable_prefix_caching=False,
            max_model_len=1024,
            max_num_seqs=64,
            disable_log_stats=True,
        )
        self._vocab = self._llm.model_config.get_vocab_size()

    def run(self, workload: Workload) -> dict[str, Any]:
        """Serve the prompts."""
        prompts = [{"prompt_token_ids": prompt} for prompt in workload.prompts(self._vocab)]
        settings = SamplingParams(temperature=0, max_tokens=workload.new, ignore_eos=True, detokenize=False)
        watch = Stopwatch()
        answers = self._llm.generate(prompts, settings, use_tqdm=False)
        return {"seconds": watch(), "tokens": [list(answer.outputs[0].token_ids) for answer in answers]}


if __name__ == "__main__":
    serve(Vllm())
