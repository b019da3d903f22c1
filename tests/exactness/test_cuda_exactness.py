"""The exactness of the CPU on a CUDA device, graphs recorded: one command on a machine that has one."""

import random

import pytest
import torch
from mixes import RowPlan, forced, run
from oracle import answer

from prefix_engine import EngineConfig
from prefix_engine.testing import base_over, tiny_model

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def mix(seed, size, vocab):
    chance = random.Random(seed)
    return [
        RowPlan(
            m=chance.choice([0, 1, 10, 10, 37, 200]),
            from_zero=chance.random() < 0.5,
            variant=chance.randrange(3),
            prompt=tuple(chance.randrange(vocab - 1) for _ in range(chance.randint(1, 90))),
            count=10,
            arrives=chance.randint(0, 6),
            cancelled_after=chance.randint(2, 8) if chance.random() < 0.1 else None,
        )
        for _ in range(size)
    ]


@pytest.fixture(scope="module", params=["tiny", "true shape"])
def models(request):
    shape = (
        {"layers": 2, "heads": 2, "width": 16, "positions": 640, "spread": 0.3}
        if request.param == "tiny"
        else {"layers": 12, "heads": 12, "width": 768, "positions": 1024, "vocab": 50257, "spread": 0.02}
    )
    model = tiny_model(**shape, seed=1)
    return model, base_over(model, device="cuda")


@pytest.mark.parametrize("kernels", ["graphs", "torch"])
@pytest.mark.parametrize("size", [1, 3, 6, 11, 33])
def test_mixes_on_cuda_equal_transformers_and_peft(models, kernels, size, tally):
    model, base = models
    plans = mix(size, size, base.config.vocab)
    config = EngineConfig(kv_bytes=256 << 20, pool_bytes=400 << 20, chunk_tokens=48, kernels=kernels)
    answers = [answer(model, plan.prefix(base), plan.prompt, plan.count) for plan in plans]
    tally.mixes += 1
    for expected, logits, tokens in forced(base, plans, config, answers):
        tally.compare(expected, logits, tokens)
    for expected, (_, sink) in zip(answers, run(base, plans, config, None), strict=True):
        tally.compare_free(expected, sink.tokens)


def test_bf16_on_cuda_stays_near_float32(models):
    model, base = models
    plans = mix(7, 6, base.config.vocab)
    config = EngineConfig(kv_bytes=256 << 20, pool_bytes=400 << 20, weights="bf16", kv="bf16")
    answers = [answer(model, plan.prefix(base), plan.prompt, plan.count) for plan in plans]
    for expected, logits, _ in forced(base, plans, config, answers):
        exact = expected.logits[: len(logits)]
        assert float((logits - exact).abs().max()) <= 0.05 * float(exact.abs().max())
