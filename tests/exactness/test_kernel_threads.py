"""The compiled kernels on several threads: the same bits, whoever calls, and after a fork."""

import subprocess
import sys
import threading

import pytest
import torch

from prefix_engine.native import NativeKernels

PRODUCTS = 300


@pytest.fixture
def three_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("weights", ["fp32", "int8"])
def test_products_of_callers_that_meet_have_the_bits_of_one_thread(weights):
    draw = torch.Generator().manual_seed(1)
    product = NativeKernels().linear(weights)(torch.randn(200, 500, generator=draw), None)
    inputs = [torch.randn(rows, 200, generator=draw) for rows in (1, 7, 20, 40)]
    torch.set_num_threads(1)
    exact = [product(x) for x in inputs]
    differing = []

    def call(place):
        torch.set_num_threads(3)
        same = (torch.equal(product(inputs[place]), exact[place]) for _ in range(PRODUCTS))
        differing.extend(place for equal in same if not equal)

    callers = [threading.Thread(target=call, args=(place,)) for place in range(len(inputs))]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not differing


FORK = """
import os, torch
from prefix_engine.native import NativeKernels
torch.set_num_threads(3)
product = NativeKernels().linear("fp32")(torch.ones(64, 500), None)
before = product(torch.ones(9, 64))
child = os.fork()
if not child:
    os._exit(0 if torch.equal(product(torch.ones(9, 64)), before) else 1)
_, status = os.waitpid(child, 0)
assert torch.equal(product(torch.ones(9, 64)), before)
raise SystemExit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_process_computes_with_threads_of_its_own():
    assert subprocess.run([sys.executable, "-c", FORK], timeout=300, check=False).returncode == 0
