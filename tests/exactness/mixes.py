"""Random mixes of requests, and a loop that runs them turn by turn."""

import queue
from dataclasses import dataclass, replace

from hypothesis import strategies as st

from prefix_engine import EngineConfig, Failed, Prefix, Request, Sampling
from prefix_engine.loop import Loop
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, TeacherForced, random_prefix


@dataclass(frozen=True)
class RowPlan:
    m: int
    from_zero: bool
    variant: int  # of the prefix: rows of equal m, rule and variant share one
    prompt: tuple[int, ...]
    count: int
    arrives: int
    cancelled_after: int | None  # turns after its arrival
    reuse: tuple[str, ...] | None = None

    @property
    def prefix_id(self) -> str | None:
        return f"{self.m}-{self.from_zero}-{self.variant}" if self.m else None

    @property
    def request(self) -> Request:
        return Request(self.prompt, self.count, None, prefix_id=self.prefix_id, reuse=self.reuse)

    def prefix(self, base) -> Prefix | None:
        if not self.m:
            return None
        seed = self.m * 10 + self.variant
        return random_prefix(base, self.m, offset=0 if self.from_zero else None, seed=seed, spread=0.5)


def prompts(vocab: int, longest: int):
    """Prompts of all kinds; half of them begin alike for a while, some are the same."""
    anything = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=longest).map(tuple)

    def begun(voice, length, end):
        return (*((voice * 7 + place * place) % vocab for place in range(length)), *end)

    ends = st.one_of(st.just(()), st.lists(st.integers(0, vocab - 1), max_size=8))
    return st.one_of(anything, st.builds(begun, st.integers(0, 1), st.sampled_from([1, 17, 33, 50]), ends))


def row_plans(vocab: int, *, longest_m: int = 512, longest_prompt: int = 40, most: int = 6):
    lengths = st.one_of(
        st.just(0), st.just(10), st.integers(1, 12), st.integers(1, 40), st.integers(1, longest_m)
    )
    return st.builds(
        RowPlan,
        m=lengths,
        from_zero=st.booleans(),
        variant=st.integers(0, 2),
        prompt=prompts(vocab, longest_prompt),
        count=st.integers(1, most),
        arrives=st.integers(0, 12),
        cancelled_after=st.one_of(st.none(), st.none(), st.none(), st.integers(0, 10)),
        reuse=st.sampled_from([None, ("acme", "alice"), ("acme", "alice"), ("acme", "bob")]),
    )


def configs(page_bytes: int, kernels: str):
    """Engines from roomy to so tight that rows and prefixes have to wait for each other."""

    def build(rows, chunk, spare, page_pool, kv_pages, threads):
        return EngineConfig(
            rows=rows,
            step_tokens=rows + spare,
            chunk_tokens=chunk,
            page=16,
            kv_bytes=kv_pages * page_bytes,
            pool_bytes=page_pool * page_bytes,
            load_threads=threads,
            kernels=kernels,
        )

    return st.builds(
        build,
        rows=st.sampled_from([1, 3, 16, 64]),
        chunk=st.sampled_from([1, 7, 16, 128]),
        spare=st.sampled_from([1, 8, 64, 512]),
        page_pool=st.sampled_from([32, 40, 2000]),
        kv_pages=st.sampled_from([5, 12, 400]),
        threads=st.integers(1, 2),
    )


def run(
    base,
    plans: list[RowPlan],
    config: EngineConfig,
    sampler,
    *,
    before=None,
    samplings=None,
    patience: int = 20_000,
):
    """Run a mix to its end; returns the request and the sink of each row.

    Each has its whole text, unless its plan cancels it: what is compared with a row that failed would be nothing.
    `before(request, place)` is called with every request before it is submitted.
    """
    prefixes = {plan.prefix_id: plan.prefix(base) for plan in plans if plan.m}
    delivered = queue.SimpleQueue()
    loop = Loop(base, config, prefixes.__getitem__, delivered.put, sampler)
    loop.pool.start()
    rows = []
    for number, plan in enumerate(plans):
        sampling = samplings[number] if samplings else Sampling()
        request = replace(plan.request, share=str(number % 3), sampling=sampling)
        if before:
            before(request, number)
        rows.append((request, Collected(), Sequence(number, request, sampling.seed or 0)))
    try:
        for turn in range(patience):
            for plan, (_, sink, sequence) in zip(plans, rows, strict=True):
                if plan.arrives == turn:
                    loop.add(sequence, sink)
                if plan.cancelled_after is not None and plan.arrives + plan.cancelled_after == turn:
                    sequence.cancelled = True
            while loop.pool.is_loading(prefixes) and not delivered.empty():
                loop.settle(delivered.get())
            if not loop.turn(0.0) and loop.pool.is_loading(prefixes):
                loop.settle(delivered.get(timeout=120))
            if all(sink.ended for _, sink, _ in rows):
                break
    finally:
        loop.pool.stop()
    check_ends(plans, [sink for _, sink, _ in rows])
    assert loop.memory.row_pages.used == loop.cache.idle
    loop.cache.clear()
    assert texts_are_zero(loop)
    return [(request, sink) for request, sink, _ in rows]


def check_ends(plans: list[RowPlan], sinks: list[Collected]) -> None:
    for plan, sink in zip(plans, sinks, strict=True):
        assert sink.ended, "a request never ended"
        last = sink.events[-1]
        if isinstance(last, Failed):
            assert plan.cancelled_after is not None, last
            assert last.code == "cancelled", last
        else:
            assert len(sink.tokens) == plan.count


def texts_are_zero(loop) -> bool:
    pages = loop.memory.row_pages
    return pages.used == 0 and not bool(loop.memory.content[: 1 + pages.total].any())


def forced(base, plans, config, answers):
    """Run a mix teacher-forced on the oracle's tokens; yields (answer, logits, greedy tokens) of each row."""
    sampler = TeacherForced()
    rows = run(base, plans, config, sampler, before=lambda r, i: sampler.expect(r, answers[i].tokens))
    for expected, (request, _) in zip(answers, rows, strict=True):
        seen = sampler.seen[id(request)]
        if seen:
            logits = sampler.logits(request)
            yield expected, logits, logits.argmax(1).tolist()
