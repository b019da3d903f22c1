"""The decode step of fixed shape that CUDA graphs record, run as it stands on a CPU."""

import random
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixes import RowPlan, configs, forced, row_plans, run
from oracle import answer
from torch.utils._python_dispatch import TorchDispatchMode

from prefix_engine import EngineConfig, Request, Sampling
from prefix_engine.attention import StepAttention
from prefix_engine.base import LayerWeights, Weights
from prefix_engine.batch_sampling import BatchSampler
from prefix_engine.fixed import Bucket, Buckets, Inputs, decode_step, numbers_of
from prefix_engine.gpt2 import hidden_states, network_of
from prefix_engine.graphs import GraphedDecode
from prefix_engine.kernels import GraphKernels
from prefix_engine.kv import PagedMemory
from prefix_engine.scheduler import Plan
from prefix_engine.sequence import Sequence
from prefix_engine.testing import base_over, by_slot, random_prefix, tiny_base, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT asks transformers by the old name
)

MODEL = tiny_model(layers=2, heads=2, width=16, positions=640, spread=0.3, seed=1)
BASE = base_over(MODEL)
PAGE_BYTES = PagedMemory(BASE.config, BASE.device, 16, 1, 1).page_bytes
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_mixes_in_fixed_shapes_equal_transformers_and_peft(data, tally):
    size = data.draw(st.sampled_from([1, 2, 4, 8, 16, 33, 64]))
    plans = data.draw(st.lists(row_plans(BASE.config.vocab), min_size=size, max_size=size))
    config = data.draw(configs(PAGE_BYTES, "graphs"))
    answers = [answer(MODEL, plan.prefix(BASE), plan.prompt, plan.count) for plan in plans]

    tally.mixes += 1
    for expected, logits, tokens in forced(BASE, plans, config, answers):
        tally.compare(expected, logits, tokens)
    for expected, (_, sink) in zip(answers, run(BASE, plans, config, BatchSampler()), strict=True):
        tally.compare_free(expected, sink.tokens)


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(data=st.data())
def test_a_row_drawn_over_the_batch_has_the_text_that_it_has_alone_row_by_row(data):
    size = data.draw(st.sampled_from([2, 5, 20]))
    plans = data.draw(st.lists(row_plans(BASE.config.vocab, most=12), min_size=size, max_size=size))
    samplings = data.draw(
        st.lists(
            st.builds(
                Sampling,
                temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
                top_k=st.sampled_from([0, 1, 5, 300]),
                top_p=st.sampled_from([0.05, 0.7, 1.0]),
                seed=st.integers(0, 1 << 40),
                frequency_penalty=st.sampled_from([0.0, -0.5]),
            ),
            min_size=size,
            max_size=size,
        )
    )
    config = data.draw(configs(PAGE_BYTES, "graphs"))
    together = run(BASE, plans, config, BatchSampler(), samplings=samplings)

    for plan, sampling, (_, sink) in zip(plans, samplings, together, strict=True):
        calm = replace(plan, arrives=0, cancelled_after=None)
        config = EngineConfig(kv_bytes=1 << 20, pool_bytes=8 << 20, kernels="torch")
        ((_, alone),) = run(BASE, [calm], config, None, samplings=[sampling])
        assert sink.tokens == alone.tokens[: len(sink.tokens)]
        assert plan.cancelled_after is not None or sink.tokens == alone.tokens


@pytest.mark.slow
def test_a_mix_on_the_true_shape_of_gpt2_in_fixed_shapes(tally):
    model = tiny_model(layers=12, heads=12, width=768, positions=1024, vocab=50257, spread=0.02, seed=0)
    base = base_over(model)
    chance = random.Random(0)
    plans = [
        RowPlan(m, bool(n % 2), 0, tuple(chance.randrange(50257) for _ in range(length)), 8, n, None)
        for n, (m, length) in enumerate([(0, 3), (10, 60), (10, 17), (200, 33), (37, 90)])
    ]
    config = EngineConfig(kv_bytes=256 << 20, pool_bytes=400 << 20, kernels="graphs")
    answers = [answer(model, plan.prefix(base), plan.prompt, plan.count) for plan in plans]
    tally.mixes += 1
    for expected, logits, tokens in forced(base, plans, config, answers):
        tally.compare(expected, logits, tokens)


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def memory_of(dtype=torch.float32, *, page=16, device="cpu"):
    """Full of numbers but for page 0, as if every page had had a holder."""
    memory = PagedMemory(BASE.config, torch.device(device), page, 1 << 21, 1 << 20, 64, dtype)
    if device == "cpu":
        memory.content.copy_(drawn(0, *memory.content.shape))
    memory.content[0] = 0
    return memory


def rows_of(memory, lengths, *, prefixes=(0, 3, 16, 21), seed=0):
    """Rows that decode, each behind one of a few prefixes; the pages' last slots beyond a text are zero."""
    chance = random.Random(seed)
    held = [(memory.prefix_pages.take(-(-m // memory.page)), m) for m in prefixes]
    rows = []
    for number, length in enumerate(lengths):
        sequence = Sequence(number, Request(tuple(chance.randrange(256) for _ in range(length)), 4, None))
        sequence.prefix_pages, sequence.m = chance.choice(held)
        sequence.position_offset = sequence.m * (number % 2)
        sequence.pages = memory.row_pages.take(-(-(length + 4) // memory.page))
        sequence.computed = length
        sequence.generated.append(number)
        rows.append(sequence)
    return tuple(rows)


def lengths():
    return st.lists(st.integers(1, 90), min_size=1, max_size=20)


@settings(max_examples=60, deadline=None)
@given(
    lengths=lengths(),
    seed=st.integers(0, 99),
    page=st.sampled_from([4, 16, 32]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_step_of_fixed_shape_equals_the_ordinary_one_and_writes_nothing_else(lengths, seed, page, dtype):
    memory, same = memory_of(dtype, page=page), memory_of(dtype, page=page)
    rows = rows_of(memory, lengths, seed=seed)
    network = network_of(BASE)
    with torch.inference_mode():
        logits = GraphedDecode(network, memory, 32)(rows)
        attend = StepAttention(same, Plan(rows, ()))
        tokens = torch.tensor([row.token(row.computed) for row in attend.order])
        places = torch.tensor([row.position_offset + row.computed for row in attend.order])
        ordinary = network.head(hidden_states(network, tokens, places, attend))
    where = [attend.order.index(row) for row in rows]
    # A difference in the last bit of float32 can round a new key or value to the other side in bfloat16.
    near = 1e-5 if dtype == torch.float32 else 2e-3
    torch.testing.assert_close(logits, ordinary[where], rtol=near, atol=near)
    # Both computed the new keys and values, so these are equal within rounding; all others to the bit.
    torch.testing.assert_close(
        memory.content[: memory.scrap], same.content[: memory.scrap], rtol=1e-2, atol=1e-5
    )
    assert not memory.content[0].any()
    untouched = memory_of(dtype, page=page)
    written = {row.pages[row.computed // page] * page + row.computed % page for row in rows}
    kept = torch.tensor([slot for slot in range(memory.scrap * page) if slot not in written])
    for mine, before in zip(
        (*memory.keys, *memory.values), (*untouched.keys, *untouched.values), strict=True
    ):
        assert torch.equal(by_slot(mine)[:, kept], by_slot(before)[:, kept])


@settings(max_examples=30, deadline=None)
@given(after=lengths())
def test_what_ran_before_in_the_buffers_changes_no_bit(after):
    used, fresh = memory_of(), memory_of()
    network = network_of(BASE)
    with torch.inference_mode():
        decode = GraphedDecode(network, used, 32)
        held = rows_of(used, after, seed=1)
        decode(held[: max(1, len(held) // 2)])
        decode(held[::-1])
        again = decode(held).clone()
        assert torch.equal(again, GraphedDecode(network, fresh, 32)(rows_of(fresh, after, seed=1)))


def test_a_step_is_the_same_however_often_it_runs():
    """What recording needs: it runs the step a few times before the one that counts."""
    memory = memory_of()
    rows = rows_of(memory, [3, 40, 17])
    bucket = Bucket(4, 8)
    flat = torch.tensor(numbers_of(rows, bucket, memory))
    network = network_of(BASE)
    with torch.inference_mode():
        first = decode_step(network, memory, Inputs.of(flat, bucket))
        before = memory.content.clone()
        for _ in range(3):
            assert torch.equal(decode_step(network, memory, Inputs.of(flat, bucket)), first)
        assert torch.equal(memory.content, before)


@pytest.mark.parametrize("loud", [1e30, float("nan"), float("inf")])
def test_a_neighbours_broken_keys_reach_no_bit_of_another_row(loud):
    calm, beside = memory_of(), memory_of()
    network = network_of(BASE)
    picked = []
    for memory in (calm, beside):
        rows = rows_of(memory, [30, 5, 70, 12, 44], prefixes=(0,))
        if memory is beside:
            memory.content[list(rows[2].pages)] = loud
        with torch.inference_mode():
            picked.append(GraphedDecode(network, memory, 8)(rows).clone())
    others = [0, 1, 3, 4]
    assert torch.equal(picked[0][others], picked[1][others])
    assert not torch.equal(picked[0][2], picked[1][2])


class Traffic(TorchDispatchMode):
    """Notes operations that read the device from the host or bring the host's numbers to it."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "lift_fresh", "_to_copy.device", "masked_select", "item")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("weights", ["fp32", "bf16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_neither_asks_the_host_nor_takes_from_it(weights, dtype):
    """What a recording forbids. Without data (on `meta`) the operations that only CUDA takes are checked too."""
    bucket = Bucket(4, 8)
    for device in ("cpu", "meta"):
        memory = memory_of(dtype, device=device)
        network = network_of(without_data(BASE) if device == "meta" else BASE, GraphKernels().linear(weights))
        flat = torch.zeros(bucket.numbers, dtype=torch.int64, device=device)
        with torch.inference_mode(), Traffic() as traffic:
            logits = decode_step(network, memory, Inputs.of(flat, bucket))
        assert (logits.dtype, logits.shape) == (torch.float32, (4, BASE.config.vocab))
        assert not [name for name in traffic.seen if any(bad in name for bad in Traffic.FORBIDDEN)]
        assert ("aten.mm.dtype" in traffic.seen) == (device == "meta" and weights == "bf16")


def without_data(base):
    def empty(tensor):
        return torch.empty_like(tensor, device="meta")

    weights = base.weights
    layers = tuple(
        LayerWeights(*(empty(getattr(layer, name)) for name in LayerWeights.__slots__))
        for layer in weights.layers
    )
    outer = (empty(weights.tokens), empty(weights.positions), layers)
    bare = Weights(*outer, empty(weights.ln_f_weight), empty(weights.ln_f_bias))
    return replace(base, weights=bare, device=torch.device("meta"))


@given(most=st.integers(1, 300), longest=st.integers(1, 200), data=st.data())
def test_a_bucket_holds_its_rows_and_blocks_and_wastes_little(most, longest, data):
    rows, blocks = data.draw(st.integers(1, most)), data.draw(st.integers(1, longest))
    buckets = Buckets(most, longest)
    bucket = buckets.holding(rows, blocks)
    assert rows <= bucket.rows <= min(most, 2 * rows)
    assert blocks <= bucket.blocks <= min(longest, max(4, blocks * 3 // 2))
    assert bucket.numbers <= buckets.largest.numbers


def test_one_recording_serves_every_step_of_its_shape():
    memory = memory_of()
    rows = rows_of(memory, [3] * 9, prefixes=(0,))
    decode = GraphedDecode(network_of(BASE), memory, 12)
    with torch.inference_mode():
        for count in (1, 2, 3, 4, 5, 8, 9):
            assert decode(rows[:count]).shape == (count, BASE.config.vocab)
    assert decode.buckets == 5  # 1, 2, 4, 8 and 12 rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prefix_lies_in_its_pages_as_it_came(dtype):
    base = tiny_base()
    memory = PagedMemory(base.config, base.device, 16, 1 << 20, 1 << 20, 4, dtype)
    memory.prefix_pages.take(3)
    prefix = random_prefix(base, 37)
    pages = memory.place(prefix)
    slots = [page * 16 + i for page in pages for i in range(16)]
    for layer, (key, value) in enumerate(prefix.tensor.to(dtype)):
        for tensor, part in ((memory.keys[layer], key), (memory.values[layer], value)):
            assert torch.equal(by_slot(tensor)[:, slots[:37]], part)
            assert not by_slot(tensor)[:, slots[37:]].any()
    memory.remove(pages)
    assert not memory.content.any()
