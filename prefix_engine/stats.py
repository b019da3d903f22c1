"""What an engine shows of itself, as plain numbers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What goes on now, and counters since the start.

    `occupancy` is decode rows a step, averaged over all steps, as a share of `rows`.
    """

    running: int
    waiting: int
    loading: int
    resident_prefixes: int
    resident_bytes: int
    pages_used: int
    pages_total: int
    steps: int
    generated_tokens: int
    prefill_tokens: int
    pool_hits: int
    pool_misses: int
    pool_evictions: int
    load_seconds: float
    occupancy: float
