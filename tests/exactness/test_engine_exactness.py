import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mixes import RowPlan, configs, forced, row_plans, run
from oracle import answer

from prefix_engine import EngineConfig, Sampling
from prefix_engine.kv import PagedMemory
from prefix_engine.testing import base_over, tiny_model

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning",  # PEFT asks transformers by the old name
)

both = pytest.mark.parametrize("kernels", ["native", "torch"])

SHAPES = [
    {"layers": 2, "heads": 2, "width": 16, "seed": 1},
    {"layers": 1, "heads": 1, "width": 8, "seed": 2},
    {"layers": 3, "heads": 4, "width": 32, "seed": 3},
]
BASES = {}


def base_of(place):
    if place not in BASES:
        model = tiny_model(**SHAPES[place], positions=640, spread=0.3)
        BASES[place] = (model, base_over(model))
    return BASES[place]


def page_bytes(base):
    return PagedMemory(base.config, base.device, 16, 1, 1).page_bytes


@both
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_every_row_of_a_mix_has_the_logits_and_tokens_that_it_has_alone_in_transformers_and_peft(
    kernels, data, tally
):
    model, base = base_of(data.draw(st.sampled_from(range(len(SHAPES)))))
    size = data.draw(st.sampled_from([1, 2, 4, 8, 16, 33, 64]))
    plans = data.draw(st.lists(row_plans(base.config.vocab), min_size=size, max_size=size))
    config = data.draw(configs(page_bytes(base), kernels))
    answers = [answer(model, plan.prefix(base), plan.prompt, plan.count) for plan in plans]

    tally.mixes += 1
    for expected, logits, tokens in forced(base, plans, config, answers):
        tally.compare(expected, logits, tokens)
    for expected, (_, sink) in zip(answers, run(base, plans, config, None), strict=True):
        tally.compare_free(expected, sink.tokens)
        tally.note_reuse(sink)


@both
@pytest.mark.slow
def test_mixes_on_the_true_shape_of_gpt2_equal_transformers_and_peft(kernels, tally):
    model = tiny_model(layers=12, heads=12, width=768, positions=1024, vocab=50257, spread=0.02, seed=0)
    base = base_over(model)
    config = EngineConfig(
        kv_bytes=256 << 20, pool_bytes=400 << 20, chunk_tokens=48, step_tokens=96, kernels=kernels
    )

    compared = 0
    for seed, size in enumerate([1, 3, 6, 11, 16]):
        plans = mix_of(random.Random(seed), size)
        answers = [answer(model, plan.prefix(base), plan.prompt, plan.count) for plan in plans]
        tally.mixes += 1
        for expected, logits, tokens in forced(base, plans, config, answers):
            tally.compare(expected, logits, tokens)
            compared += len(tokens)
    assert compared >= 8 * 8


def mix_of(chance: random.Random, size: int) -> list[RowPlan]:
    return [
        RowPlan(
            m=chance.choice([0, 1, 10, 10, 37, 200]),
            from_zero=chance.random() < 0.5,
            variant=chance.randrange(3),
            prompt=tuple(chance.randrange(50257) for _ in range(chance.randint(1, 90))),
            count=8,
            arrives=chance.randint(0, 6),
            cancelled_after=chance.randint(2, 8) if chance.random() < 0.1 else None,
        )
        for _ in range(size)
    ]


@both
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)
@given(data=st.data())
def test_a_sampled_row_of_a_mix_has_the_text_that_it_has_alone(kernels, data):
    _, base = base_of(data.draw(st.sampled_from(range(len(SHAPES)))))
    size = data.draw(st.sampled_from([2, 5, 20]))
    plans = data.draw(st.lists(row_plans(base.config.vocab, most=12), min_size=size, max_size=size))
    samplings = data.draw(st.lists(sampling_choices(), min_size=size, max_size=size))
    together = run(base, plans, data.draw(configs(page_bytes(base), kernels)), None, samplings=samplings)

    for plan, sampling, (_, sink) in zip(plans, samplings, together, strict=True):
        calm = replace(plan, arrives=0, cancelled_after=None)
        config = EngineConfig(kv_bytes=1 << 20, pool_bytes=8 << 20, kernels=kernels)
        ((_, alone),) = run(base, [calm], config, None, samplings=[sampling])
        assert sink.tokens == alone.tokens[: len(sink.tokens)]
        assert plan.cancelled_after is not None or sink.tokens == alone.tokens


def sampling_choices():
    return st.builds(
        Sampling,
        temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
        top_k=st.sampled_from([0, 1, 5, 300]),
        top_p=st.sampled_from([0.05, 0.7, 1.0]),
        seed=st.integers(0, 1 << 40),
        presence_penalty=st.sampled_from([0.0, 0.5]),
        frequency_penalty=st.sampled_from([0.0, -0.5]),
        logit_bias=st.dictionaries(st.integers(0, 256), st.floats(-20, 20), max_size=3),
    )
