"""Tensors in huge pages are tensors like any other, also where their memory is brought into being ahead of its use."""

import gc
import mmap
import platform
import resource
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prefix_engine import huge

_KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
DTYPES = [torch.float32, torch.bfloat16, torch.int8, torch.uint8]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3,), (0, 4), (5, 2, 7), (1 << 20, 3)])
def test_memory_is_zero_of_its_shape_and_may_be_written(shape, dtype):
    tensor = huge.zeros(shape, dtype)
    assert (tensor.shape, tensor.dtype) == (shape, dtype)
    assert not tensor.any()
    tensor.fill_(1)
    assert bool((tensor == 1).all())


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 300), st.integers(1, 300), st.sampled_from(DTYPES)), min_size=1, max_size=12
    )
)
def test_tensors_of_an_arena_lie_apart(shapes):
    arena = huge.Arena()
    tensors = [arena.zeros(rows, columns, dtype=dtype) for rows, columns, dtype in shapes]
    for number, tensor in enumerate(tensors):
        assert not tensor.any()
        assert tensor.data_ptr() % 64 == 0 or not tensor.numel()
        tensor.fill_(number + 1)
    for number, (tensor, shape) in enumerate(zip(tensors, shapes, strict=True)):
        assert (*tensor.shape, tensor.dtype) == shape
        assert bool((tensor == number + 1).all())


def resident():
    """Bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


def test_memory_goes_back_with_the_last_tensor():
    size, before = 256 << 20, resident()
    view = huge.Arena().zeros(size // 4).fill_(1.0)[10:]
    assert resident() > before + size * 3 // 4
    del view
    gc.collect()
    assert resident() < before + size // 4


@pytest.mark.skipif(
    platform.system() != "Linux" or _KERNEL < (5, 14), reason="the system cannot bring memory into being"
)
@pytest.mark.parametrize("begin", [0, 1001])
def test_populated_memory_keeps_its_content_and_faults_no_more(begin):
    """Also a view that begins within a page of the system; in small pages, so that each would fault."""
    memory = mmap.mmap(-1, 1 << 21, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    tensor = torch.frombuffer(memory, dtype=torch.float32)
    tensor[begin] = 7.0
    huge.populate(tensor[begin:])
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    tensor[begin::1024].add_(1.0)
    faults = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before
    assert tensor[begin] == 8.0
    assert faults < 50  # of 511 pages of the system that were touched
