"""What an engine shows of itself, as plain numbers."""

from dataclasses import dataclass

from prefix_engine.loop import Loop


@dataclass(frozen=True, slots=True)
class EngineStats:
    """What goes on now, and counters since the start.

    `waiting_tokens` are the positions that requests without a row ask for. `pages_used` are those of rows; `pages_cached`
    hold texts that no row reads, and make room when it is needed. `prompt_cache_hits` requests found the beginning of their prompt, `prompt_cache_tokens` in all, which
    `prefill_tokens` does not count. `decoded_rows` are rows that a step gave a token, summed over all steps; `occupancy`
    is their average as a share of `rows`.
    """

    running: int
    waiting: int
    waiting_tokens: int
    loading: int
    resident_prefixes: int
    resident_bytes: int
    pages_used: int
    pages_cached: int
    pages_total: int
    steps: int
    generated_tokens: int
    prefill_tokens: int
    prompt_cache_hits: int
    prompt_cache_tokens: int
    pool_hits: int
    pool_misses: int
    pool_evictions: int
    load_seconds: float
    occupancy: float
    decoded_rows: int
    rows: int


def stats_of(loop: Loop, waiting: int, waiting_tokens: int, rows: int) -> EngineStats:
    """Read a loop without stopping it; `waiting` requests for `waiting_tokens` have none of its `rows`."""
    pages, pool, cache = loop.memory.row_pages, loop.pool, loop.cache
    cached = cache.idle
    return EngineStats(
        running=len(loop.scheduler.running),
        waiting=waiting,
        waiting_tokens=waiting_tokens,
        loading=pool.loading,
        resident_prefixes=pool.resident,
        resident_bytes=pool.resident_bytes,
        pages_used=max(0, pages.used - cached),
        pages_cached=cached,
        pages_total=pages.total,
        steps=loop.steps,
        generated_tokens=loop.generated_tokens,
        prefill_tokens=loop.prefill_tokens,
        prompt_cache_hits=cache.hits,
        prompt_cache_tokens=cache.tokens_saved,
        pool_hits=pool.hits,
        pool_misses=pool.misses,
        pool_evictions=pool.evictions,
        load_seconds=pool.load_seconds,
        occupancy=loop.decoded_rows / max(1, loop.steps * rows),
        decoded_rows=loop.decoded_rows,
        rows=rows,
    )
