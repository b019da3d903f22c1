"""What the engine may use of the machine: rows, tokens a step, bytes. Knows no tensors."""

from dataclasses import dataclass, fields
from typing import Literal


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Limits of one engine.

    Attributes:
        rows: rows of the batch, that is requests generated at once.
        step_tokens: token budget of one step, decode rows and prefill chunks together.
        chunk_tokens: longest piece of one prompt that a step takes, so that running rows do not stall.
        page: positions in one page of key/value memory.
        kv_bytes: memory for the keys and values of running rows, in bytes; less if all rows need less.
        pool_bytes: memory for resident prefixes, in bytes.
        load_threads: threads that fetch prefixes beside the step loop.
        max_waiting: requests that may wait for a row before `submit` refuses.
        max_waiting_tokens: text positions, prompt and max_tokens, that they may ask for together.
        kernels: what computes; `auto` is CUDA graphs on CUDA, the compiled kernels on a CPU where they can
            be had, else torch.
        weights: format of the base's matrices. int8 (on a CPU) and bf16 (meant for CUDA) are faster and
            not exact.
        kv: format of keys and values in memory. bf16 takes half the bytes and is not exact.
        prompt_cache_s: seconds that a text's keys and values are kept after their last use, in memory that no
            row needs, for requests of the same `reuse`; 0 keeps none.
    """

    rows: int = 32
    step_tokens: int = 512
    chunk_tokens: int = 112
    page: int = 16
    kv_bytes: int = 1 << 30
    pool_bytes: int = 256 << 20
    load_threads: int = 2
    max_waiting: int = 4096
    max_waiting_tokens: int = 1 << 20
    kernels: Literal["auto", "graphs", "native", "torch"] = "auto"
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    kv: Literal["fp32", "bf16"] = "fp32"
    prompt_cache_s: float = 300.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int) and value < 1 and field.name != "prompt_cache_s":
                raise ValueError(f"{field.name} must be at least 1, not {value}")
        if not self.prompt_cache_s >= 0:
            raise ValueError(f"prompt_cache_s must be at least 0, not {self.prompt_cache_s}")
        if self.step_tokens < self.rows:
            raise ValueError(f"step_tokens ({self.step_tokens}) must be at least rows ({self.rows})")
