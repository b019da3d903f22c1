"""bf16 weights on a CPU: near float32, each row for itself, and refused where nobody made them."""

import math
import random

import pytest
import torch
from mixes import RowPlan, forced
from oracle import answer

from prefix_engine import EngineConfig
from prefix_engine.gpt2 import PlainLinear
from prefix_engine.kernels import KernelError, kernels_for
from prefix_engine.quantised import Bf16Linear
from prefix_engine.testing import base_over, tiny_model

CPU = torch.device("cpu")


def drawn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loud", [1e30, math.nan, math.inf, 0.0])
def test_a_bf16_products_row_keeps_its_bits_whatever_stands_beside_it(loud):
    product = Bf16Linear.of(drawn(1, 96, 130), drawn(2, 130))
    calm = drawn(3, 9, 96)
    for place in range(9):
        beside = torch.full_like(calm, loud)
        beside[place] = calm[place]
        assert torch.equal(product(calm)[place], product(beside)[place])


def test_a_bf16_product_rounds_what_goes_in_and_nothing_else():
    weight, offset, x, more = drawn(1, 96, 130), drawn(2, 130), drawn(3, 9, 96), drawn(4, 9, 130)
    exact = PlainLinear(weight.bfloat16().float(), offset)(x.bfloat16().float(), gelu=True, add=more)
    torch.testing.assert_close(Bf16Linear.of(weight, offset)(x, gelu=True, add=more), exact)


@pytest.mark.parametrize("kernels", ["torch", "graphs"])
def test_bf16_logits_stay_within_a_fiftieth_of_their_range(kernels):
    model = tiny_model(layers=3, heads=4, width=32, positions=640, spread=0.2, seed=3)
    base = base_over(model)
    chance = random.Random(0)
    plans = [
        RowPlan(0, False, 0, tuple(chance.randrange(256) for _ in range(chance.randint(1, 60))), 8, n, None)
        for n in range(8)
    ]
    answers = [answer(model, None, plan.prompt, plan.count) for plan in plans]
    config = EngineConfig(kv_bytes=1 << 22, pool_bytes=1 << 20, kernels=kernels, weights="bf16")
    compared = 0
    for expected, logits, tokens in forced(base, plans, config, answers):
        span = float(expected.logits.max() - expected.logits.min())
        difference = float((logits - expected.logits).abs().max())
        assert 0 < difference < span / 50
        for step, token in enumerate(tokens):
            if expected.gap(step) > span / 25:
                assert token == expected.tokens[step]
                compared += 1
    assert compared > 8


def test_bf16_weights_are_refused_by_the_native_kernels_and_auto_takes_torch(caplog):
    with pytest.raises(KernelError, match="no bf16 weights"):
        kernels_for("native", CPU, "bf16")
    assert kernels_for("auto", CPU, "bf16").name == "torch"
    assert "no bf16 weights" in caplog.text


def test_int8_weights_are_refused_on_cuda():
    with pytest.raises(KernelError, match="choose bf16"):
        kernels_for("auto", torch.device("cuda"), "int8")
