"""Memory that is brought into being ahead of its use."""

import platform
import resource

import pytest
import torch

from prefix_engine import huge

_KERNEL = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])


@pytest.mark.skipif(
    platform.system() != "Linux" or _KERNEL < (5, 14), reason="the system cannot bring memory into being"
)
def test_populated_memory_keeps_its_content_and_faults_no_more() -> None:
    tensor = huge.zeros((3, 1 << 18), torch.float32)
    tensor[1, 5] = 7.0
    for row in tensor:
        huge.populate(row)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensor.view(-1)[::1024].add_(1.0)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    assert tensor[1, 5] == 7.0
    assert faults < 100  # of 768 pages of the system that were touched


def test_a_view_that_begins_within_a_page_is_populated() -> None:
    tensor = huge.zeros((5000,), torch.float32)
    huge.populate(tensor[1001:1003])
    assert not tensor.any()
