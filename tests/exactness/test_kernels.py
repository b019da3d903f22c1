"""The compiled kernels against torch's, and that no row's bits depend on what its neighbours hold."""

import queue
import subprocess
import sys
from math import isnan

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_engine import EngineConfig, Request, Sampling
from prefix_engine.gpt2 import PlainLinear, hidden_states, network_of
from prefix_engine.kernels import KernelError, TorchKernels, kernels_for
from prefix_engine.kv import PagedMemory
from prefix_engine.loop import Loop
from prefix_engine.native import NativeKernels, library
from prefix_engine.sampling import Wish
from prefix_engine.scheduler import Chunk, Plan
from prefix_engine.sequence import Sequence
from prefix_engine.testing import Collected, TeacherForced, random_prefix, tiny_base

KERNELS = {"native": NativeKernels(), "torch": TorchKernels()}
both = pytest.mark.parametrize("kernels", ["native", "torch"])
formats = pytest.mark.parametrize("weights", ["fp32", "int8"])


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(1, 70),
    inputs=st.one_of(st.integers(1, 40), st.sampled_from([768, 769, 1600])),
    outputs=st.integers(1, 200),
    bias=st.booleans(),
    gelu=st.booleans(),
    add=st.booleans(),
)
def test_packed_products_equal_plain_ones(rows, inputs, outputs, bias, gelu, add):
    weight = drawn(1, inputs, outputs) / inputs**0.5
    offset = drawn(2, outputs) if bias else None
    x, more = drawn(3, rows, inputs), drawn(4, rows, outputs) if add else None
    exact = PlainLinear(weight, offset)(x, gelu=gelu, add=more)
    packed = KERNELS["native"].linear("fp32")(weight, offset)(x, gelu=gelu, add=more)
    torch.testing.assert_close(packed, exact, rtol=1e-5, atol=1e-5)
    rounded = [kernels.linear("int8")(weight, offset)(x, gelu=gelu, add=more) for kernels in KERNELS.values()]
    torch.testing.assert_close(*rounded, rtol=1e-5, atol=1e-5)
    # Two roundings to one part in 254 of the largest number of a row and of a column.
    bound = 0.02 * (x.abs().amax(1, keepdim=True) * weight.abs().amax(0)) * inputs**0.5 + 1e-5
    assert bool(((rounded[0] - exact).abs() <= 2 * bound).all())


@both
@formats
@pytest.mark.parametrize("loud", [1e30, float("nan"), float("inf"), 0.0])
def test_a_products_row_has_the_same_bits_whatever_stands_beside_it(kernels, weights, loud):
    weight, offset = drawn(1, 96, 130), drawn(2, 130)
    product = KERNELS[kernels].linear(weights)(weight, offset)
    for rows in (2, 9, 33):
        calm = drawn(3, rows, 96)
        for place in {0, rows // 2, rows - 1}:
            beside = torch.full_like(calm, loud)
            beside[place] = calm[place]
            assert torch.equal(product(calm)[place], product(beside)[place])
            if isnan(loud):
                assert product(beside)[(place + 1) % rows].isnan().all()


def test_a_packed_row_alone_has_the_bits_that_it_has_in_a_batch():
    weight, offset, x = drawn(1, 96, 130), drawn(2, 130), drawn(3, 40, 96)
    for weights in ("fp32", "int8"):
        product = KERNELS["native"].linear(weights)(weight, offset)
        whole = product(x)
        for place in range(40):
            assert torch.equal(product(x[place : place + 1])[0], whole[place])


@settings(max_examples=100, deadline=None)
@given(rows=st.integers(1, 40), width=st.sampled_from([1, 3, 16, 40, 768, 1601]), spread=st.floats(1e-3, 1e3))
def test_the_compiled_norm_equals_torchs(rows, width, spread):
    weight, bias, x = (
        drawn(1, width),
        drawn(2, width),
        spread * (drawn(3, rows, width) + 3 * drawn(4, rows, 1)),
    )
    norms = [kernels.norm()(weight, bias, 1e-5)(x) for kernels in KERNELS.values()]
    torch.testing.assert_close(*norms, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loud", [1e30, float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("width", [96, 97, 1601])
def test_a_norms_row_has_the_same_bits_alone_and_whatever_stands_beside_it(loud, width):
    norm = KERNELS["native"].norm()(drawn(1, width), drawn(2, width), 1e-5)
    calm = drawn(3, 33, width)
    for place in (0, 7, 8, 32):
        beside = torch.full_like(calm, loud)
        beside[place] = calm[place]
        assert torch.equal(norm(calm)[place], norm(beside)[place])
        assert torch.equal(norm(calm)[place], norm(calm[place : place + 1])[0])


def test_wanted_hidden_states_have_the_bits_that_they_have_among_all():
    base = tiny_base(layers=3)
    tokens, places = torch.arange(7) % base.config.vocab, torch.arange(7)
    network = network_of(base, KERNELS["native"].linear("fp32"), KERNELS["native"].norm())
    seen = []

    def attend(layer, qkv):
        seen.append((layer, len(qkv)))
        return qkv.sum(1)

    whole = hidden_states(network, tokens, places, attend)
    for wanted in ([0, 6], [3], [5, 5, 1], []):
        some = hidden_states(network, tokens, places, attend, torch.tensor(wanted, dtype=torch.long))
        assert torch.equal(some, whole[wanted])
    assert {length for _, length in seen} == {7}  # keys and values of all tokens, in every layer


def plans(chance, memory):
    """Rows of several lengths, some behind one prefix, and chunks; their pages filled with numbers."""
    prefixes = [((), 0), *((memory.prefix_pages.take(-(-m // memory.page)), m) for m in (3, 16, 40))]
    rows = []
    for number in range(chance.draw(st.integers(1, 20))):
        pages, m = chance.draw(st.sampled_from(prefixes))
        length = chance.draw(st.integers(2, 60))
        sequence = Sequence(number, Request(tuple(range(length)), 4, None, sampling=Sampling()))
        sequence.prefix_pages, sequence.m = pages, m
        sequence.pages = memory.row_pages.take(-(-(length + 4) // memory.page))
        rows.append(sequence)
    decode, chunks = [], []
    for sequence in rows:
        if chance.draw(st.booleans()):
            sequence.computed = len(sequence.request.prompt)
            sequence.generated.append(0)
            decode.append(sequence)
        else:
            start = chance.draw(st.integers(0, len(sequence.request.prompt) - 1))
            sequence.computed = start
            chunks.append(Chunk(sequence, start, len(sequence.request.prompt)))
    return Plan(tuple(decode), tuple(chunks))


@settings(max_examples=80, deadline=None)
@given(
    chance=st.data(),
    heads=st.sampled_from([1, 2, 3, 17]),  # more than one piece of work takes
    head_dim=st.sampled_from([8, 16, 20, 64]),
    page=st.sampled_from([4, 16, 32, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_compiled_attention_equals_torchs(chance, heads, head_dim, page, dtype):
    base = tiny_base(layers=1, heads=heads, width=heads * head_dim)
    memory = PagedMemory(base.config, base.device, page, 1 << 24, 1 << 24, 16, dtype)
    memory.keys[0].copy_(drawn(1, *memory.keys[0].shape))
    memory.values[0].copy_(drawn(2, *memory.values[0].shape))
    plan = plans(chance, memory)
    tokens = plan.tokens
    qkv = drawn(3, tokens, 3, heads, head_dim)
    outs, kept = [], []
    for kernels in KERNELS.values():
        attend = kernels.attention(memory, plan)
        # Each orders the rows in its own way; the numbers belong to rows.
        place = {id(sequence): i for i, sequence in enumerate(plan.decode)}
        order = [place[id(sequence)] for sequence in attend.order] + list(range(len(plan.decode), tokens))
        mixed = attend(0, qkv[order].contiguous())
        out = torch.empty_like(mixed)
        out[order] = mixed
        outs.append(out)
        kept.append((memory.keys[0].clone(), memory.values[0].clone()))
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for native, plain in zip(*kept, strict=True):
        assert torch.equal(native, plain)


@pytest.mark.parametrize("head_dim", [20, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("start", "length"), [(0, 129), (5, 300), (100, 357)])
def test_compiled_attention_equals_torchs_over_a_chunk_of_several_tasks(head_dim, dtype, start, length):
    base = tiny_base(layers=1, heads=2, width=2 * head_dim, positions=512)
    memory = PagedMemory(base.config, base.device, 16, 1 << 22, 1 << 22, 2, dtype)
    memory.content.copy_(drawn(1, *memory.content.shape))
    memory.content[0] = 0
    sequence = Sequence(0, Request((1,) * length, 4, None), computed=start, m=40)
    sequence.prefix_pages = memory.prefix_pages.take(3)
    sequence.pages = memory.row_pages.take(-(-length // 16))
    plan = Plan((), (Chunk(sequence, start, length),))
    qkv = drawn(2, plan.tokens, 3, 2, head_dim)
    outs = [kernels.attention(memory, plan)(0, qkv) for kernels in KERNELS.values()]
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)


@both
@pytest.mark.parametrize("head_dim", [8, 20, 64, 250])
@pytest.mark.parametrize("m", [0, 40])
@pytest.mark.parametrize("count", [5, 128])
def test_rows_keep_their_bits_beside_a_text_that_is_not_finite(kernels, head_dim, m, count):
    """Few rows, and as many as a task takes, so that its last tile is the last there is room for."""
    broken_row, page = count // 3, 4
    base = tiny_base(layers=1, heads=1, width=head_dim)
    mixed = []
    for loud in (None, float("nan"), float("inf")):
        memory = PagedMemory(base.config, base.device, page, 1 << 22, 1 << 20, count)
        memory.content.copy_(drawn(1, *memory.content.shape))
        memory.content[0] = 0
        prefix = memory.prefix_pages.take(-(-m // page))
        rows = []
        for number in range(count):
            sequence = Sequence(number, Request((1, 2, 3, 4, 5), 4, None))
            sequence.prefix_pages, sequence.m, sequence.computed = prefix, m, 5
            sequence.pages = memory.row_pages.take(3)
            sequence.generated.append(0)
            rows.append(sequence)
        if loud is not None:
            memory.content[list(rows[broken_row].pages)] = loud
        attend = KERNELS[kernels].attention(memory, Plan(tuple(rows), ()))
        out = attend(0, drawn(2, count, 3, 1, head_dim))
        mixed.append({sequence.number: out[place] for place, sequence in enumerate(attend.order)})
    for broken in mixed[1:]:
        assert not broken[broken_row].isfinite().all()
        for number in set(range(count)) - {broken_row}:
            assert torch.equal(broken[number], mixed[0][number])


def test_heads_that_are_too_wide_for_the_compiled_kernels_are_left_to_torch():
    cpu = torch.device("cpu")
    assert kernels_for("auto", cpu, head_dim=256).name == "native"
    assert kernels_for("auto", cpu, head_dim=257).name == "torch"
    with pytest.raises(KernelError, match="up to 256"):
        kernels_for("native", cpu, head_dim=384)


@both
@formats
@pytest.mark.parametrize("kv", ["fp32", "bf16"])
def test_a_rows_logits_keep_their_bits_when_a_neighbours_prefix_grows_or_breaks(kernels, weights, kv):
    base = tiny_base(layers=2, heads=2, width=32)
    config = EngineConfig(kv_bytes=1 << 20, pool_bytes=1 << 20, kernels=kernels, weights=weights, kv=kv)

    def logits(spread):
        own, other = random_prefix(base, 5, seed=1), random_prefix(base, 5, seed=2, spread=spread)
        sampler, delivered = TeacherForced(), queue.SimpleQueue()
        loop = Loop(base, config, {"own": own, "other": other}.__getitem__, delivered.put, sampler)
        loop.pool.start()
        requests = [Request((1, 2, 3), 6, None, prefix_id=name) for name in ("own", "other", "own")]
        sinks = [Collected() for _ in requests]
        for number, (request, sink) in enumerate(zip(requests, sinks, strict=True)):
            sampler.expect(request, (7, 8, 9, 10, 11, 12))
            loop.add(Sequence(number, request), sink)
        for _ in range(2):
            loop.pool.ensure("own", ()), loop.pool.ensure("other", ())
            while loop.pool.is_loading({"own", "other"}):
                loop.settle(delivered.get(timeout=60))
        while not all(sink.ended for sink in sinks):
            loop.turn(0.0)
        loop.pool.stop()
        return sampler.logits(requests[0])

    calm = logits(1.0)
    assert calm.isfinite().all()
    for spread in (1e3, 1e18):
        assert torch.equal(logits(spread), calm)


def test_auto_goes_on_with_torch_where_there_is_no_compiler(monkeypatch, caplog):
    monkeypatch.setenv("CC", "no-such-compiler")
    library.load.cache_clear()
    try:
        assert kernels_for("auto", torch.device("cpu")).name == "torch"
        assert "no C compiler" in caplog.text
        with pytest.raises(KernelError, match="no C compiler"):
            kernels_for("native", torch.device("cpu"))
    finally:
        library.load.cache_clear()


def test_kernels_are_not_loaded_from_a_folder_that_others_may_write(monkeypatch, tmp_path):
    (tmp_path / "prefixserve").mkdir()
    (tmp_path / "prefixserve").chmod(0o777)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library.load.cache_clear()
    try:
        with pytest.raises(KernelError, match="writable for nobody else"):
            kernels_for("native", torch.device("cpu"))
    finally:
        library.load.cache_clear()


def test_kernels_of_which_half_was_written_are_made_anew(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = [sys.executable, "-c", "from prefix_engine.native import library; library.load()"]
    for spoil in (
        lambda whole: b"",
        lambda whole: whole[:20_000],
        lambda whole: whole[:4096] + bytes(4096) + whole[8192:],
    ):
        subprocess.run(load, check=True)
        (made,) = (tmp_path / "prefixserve").glob("*.so")
        whole = made.read_bytes()
        made.write_bytes(spoil(whole))
        subprocess.run(load, check=True)
        assert made.read_bytes() == whole
        assert {path.suffix for path in made.parent.iterdir()} == {".so", ".sha256"}


@pytest.mark.parametrize("suffix", [".so", ".sha256"])
def test_kernels_that_others_may_write_are_made_anew(suffix, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load = [sys.executable, "-c", "from prefix_engine.native import library; library.load()"]
    subprocess.run(load, check=True)
    (made,) = (tmp_path / "prefixserve").glob(f"*{suffix}")
    assert not made.stat().st_mode & 0o022
    made.chmod(0o660)
    before = made.stat().st_ino
    subprocess.run(load, check=True)
    assert made.stat().st_ino != before
    assert not made.stat().st_mode & 0o022


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"CC": "cc '"}, "CC cannot be read"),
        ({"XDG_CACHE_HOME": "{tmp}/open"}, "must not be writable for everybody"),
        ({"XDG_CACHE_HOME": "", "HOME": ""}, "XDG_CACHE_HOME"),
    ],
)
def test_what_keeps_kernels_from_being_made_is_told_and_torch_goes_on(
    monkeypatch, tmp_path, caplog, settings, told
):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    for name, value in settings.items():
        monkeypatch.setenv(name, value.format(tmp=tmp_path))
    if "HOME" in settings:
        monkeypatch.delenv("HOME")
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a user whom nobody knows
    library.load.cache_clear()
    try:
        assert kernels_for("auto", torch.device("cpu")).name == "torch"
        assert told in caplog.text
    finally:
        library.load.cache_clear()


def test_a_failing_compiler_says_what_it_said(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "false")
    library.load.cache_clear()
    try:
        with pytest.raises(KernelError, match="false failed"):
            kernels_for("native", torch.device("cpu"))
    finally:
        library.load.cache_clear()


@both
@settings(max_examples=150, deadline=None)
@given(chance=st.data(), rows=st.integers(1, 9), columns=st.sampled_from([1, 5, 255, 256, 257, 1000]))
def test_the_best_of_a_row_is_the_first_of_its_largest(kernels, chance, rows, columns):
    numbers = drawn(chance.draw(st.integers(0, 9)), rows, columns).round(
        decimals=chance.draw(st.integers(0, 3))
    )
    odd = {}
    for row in range(rows):
        odd[row] = chance.draw(st.sampled_from([None, None, float("nan"), float("inf"), -float("inf")]))
        if odd[row] is not None:
            numbers[row, chance.draw(st.integers(0, columns - 1))] = odd[row]
    for row, (token, finite) in enumerate(KERNELS[kernels].best(numbers)):
        assert finite == (odd[row] is None)
        assert 0 <= token < columns
        assert not finite or token == numbers[row].tolist().index(numbers[row].max().item())


@settings(max_examples=60, deadline=None)
@given(
    chance=st.data(),
    weights=st.sampled_from(["fp32", "int8"]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    heads=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([8, 20]),
)
def test_all_blocks_in_one_call_have_the_bits_of_layer_by_layer(chance, weights, dtype, heads, head_dim):
    base = tiny_base(layers=3, heads=heads, width=heads * head_dim)
    native = KERNELS["native"]
    memory = PagedMemory(base.config, base.device, 4, 1 << 22, 1 << 22, 16, dtype)
    memory.content.copy_(drawn(1, *memory.content.shape))
    plan = plans(chance, memory)
    network = network_of(base, native.linear(weights), native.norm())
    tokens = torch.randint(
        0, base.config.vocab, (plan.tokens,), generator=torch.Generator().manual_seed(plan.tokens)
    )
    places = torch.arange(plan.tokens) % base.config.positions
    wanted = chance.draw(st.one_of(st.none(), st.lists(st.integers(0, plan.tokens - 1), max_size=9)))
    wanted = None if wanted is None else torch.tensor(wanted, dtype=torch.long)
    before, found = memory.content.clone(), []
    forward = native.forward(network)
    for run in (forward, lambda *given: hidden_states(network, *given)):
        memory.content.copy_(before)
        hidden = run(tokens, places, native.attention(memory, plan), wanted)
        found.append((hidden, memory.content.clone()))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert sum(forward.spent) > 0


def test_one_call_refuses_tokens_and_positions_that_the_model_does_not_have():
    base = tiny_base(layers=1)
    native = KERNELS["native"]
    memory = PagedMemory(base.config, base.device, 4, 1 << 20, 1 << 20, 2)
    sequence = Sequence(0, Request((1,), 4, None))
    sequence.pages = memory.row_pages.take(2)
    attend = native.attention(memory, Plan((), (Chunk(sequence, 0, 1),)))
    forward = native.forward(network_of(base, native.linear("fp32"), native.norm()))
    config = base.config
    for token, place in ((config.vocab, 0), (-1, 0), (0, config.positions), (0, -1)):
        with pytest.raises(IndexError, match="does not have"):
            forward(torch.tensor([token]), torch.tensor([place]), attend)


def one_step(native, weights):
    """Hidden states, logits and choices of a chunk and a row, with matrices made here and now."""
    base = tiny_base(layers=2)
    memory = PagedMemory(base.config, base.device, 4, 1 << 20, 1 << 20, 2)
    network = network_of(base, native.linear(weights), native.norm())
    rows = [Sequence(number, Request((1, 2, 3), 4, None)) for number in range(2)]
    for sequence in rows:
        sequence.pages = memory.row_pages.take(2)
    attend = native.attention(memory, Plan((), tuple(Chunk(sequence, 0, 3) for sequence in rows)))
    tokens, places = torch.tensor([1, 2, 3, 4, 5, 6]), torch.tensor([0, 1, 2, 0, 1, 2])
    hidden = native.forward(network)(tokens, places, attend)
    slow = hidden_states(network, tokens, places, attend)
    logits = network.head(hidden)
    wishes = {0: Wish(1.0, 0, 0.9, 0.5), 3: Wish(0.7, 4, 1.0, 0.1)}
    return hidden, slow, logits, native.best(logits), native.draws(logits, wishes)


@formats
@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_a_step_has_the_same_bits_whatever_torch_makes_by_default(weights, default):
    native, before = KERNELS["native"], torch.get_default_dtype()
    expected = one_step(native, weights)
    base = tiny_base(layers=2)
    torch.set_default_dtype(default)
    try:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(f"{__name__}.tiny_base", lambda **_: base)
            found = one_step(native, weights)
    finally:
        torch.set_default_dtype(before)
    for one, other in zip(expected[:3], found[:3], strict=True):
        assert one.dtype == other.dtype == torch.float32
        assert torch.equal(one, other)
    assert expected[3:] == found[3:]


@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_what_is_not_float32_is_refused_before_it_is_read(weights, dtype):
    native, matrix = KERNELS["native"], torch.ones(8, 8, dtype=dtype)
    with pytest.raises(TypeError, match="read float32"):
        native.linear(weights)(matrix, None)
    with pytest.raises(TypeError, match="read float32"):
        native.norm()(matrix[0], torch.ones(8), 1e-5)
    with pytest.raises(TypeError, match="read float32"):
        native.norm()(torch.ones(8), matrix[0], 1e-5)
