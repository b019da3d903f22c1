"""Packed losses and gradients against padded transformers with the prefix in a cache."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from prefix_engine.packed import Text, token_losses
from prefix_engine.testing import base_over, random_prefix, tiny_model

MODEL = tiny_model(layers=3, heads=2, width=16, positions=128)
BASE = base_over(MODEL)


def oracle(texts, prefixes):
    """Losses by text: one padded batch a prefix, padding masked, positions told."""
    found = {}
    for prefix in {text.prefix for text in texts}:
        mine = [i for i, text in enumerate(texts) if text.prefix == prefix]
        longest = max(len(texts[i].tokens) for i in mine)
        ids = torch.tensor([[*texts[i].tokens, *[0] * (longest - len(texts[i].tokens))] for i in mine])
        real = torch.tensor(
            [[1] * len(texts[i].tokens) + [0] * (longest - len(texts[i].tokens)) for i in mine]
        )
        places = torch.stack([torch.arange(longest) + texts[i].position_offset for i in mine])
        cache, m = DynamicCache(), 0
        if prefix is not None:
            m = prefixes[prefix].shape[3]
            for layer, (key, value) in enumerate(prefixes[prefix]):
                cache.update(key.expand(len(mine), -1, -1, -1), value.expand(len(mine), -1, -1, -1), layer)
        mask = torch.cat([torch.ones(len(mine), m, dtype=torch.long), real], 1)
        out = MODEL(
            input_ids=ids, attention_mask=mask, position_ids=places, past_key_values=cache, use_cache=True
        )
        logs = out.logits.log_softmax(-1)
        for row, i in enumerate(mine):
            tokens = texts[i].tokens
            found[i] = torch.stack(
                [-logs[row, t - 1, tokens[t]] for t in range(texts[i].loss_from, len(tokens))]
            )
    return found


def prefixes_of(*lengths):
    return [random_prefix(BASE, m, seed=m, spread=0.5).tensor.requires_grad_() for m in lengths]


@st.composite
def mixes(draw):
    lengths = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    texts = []
    for _ in range(draw(st.integers(1, 12))):
        size = draw(st.integers(2, 40))
        tokens = tuple(draw(st.lists(st.integers(0, 256), min_size=size, max_size=size)))
        prefix = draw(st.sampled_from([None, *range(len(lengths))]))
        offset = 0 if prefix is None else draw(st.sampled_from([0, lengths[prefix]]))
        texts.append(Text(tokens, draw(st.integers(1, size - 1)), prefix, offset))
    return lengths, texts


@settings(max_examples=40, deadline=None)
@given(mixes())
def test_losses_and_gradients_are_those_of_padded_transformers(mix):
    lengths, texts = mix
    prefixes = prefixes_of(*lengths)
    expected = oracle(texts, prefixes)
    found = token_losses(BASE, texts, prefixes)
    for i in range(len(texts)):
        torch.testing.assert_close(found.losses[found.text == i], expected[i], atol=1e-4, rtol=1e-5)
    if any(text.prefix is not None for text in texts):
        mine = torch.autograd.grad(found.losses.sum(), prefixes, allow_unused=True)
        theirs = torch.autograd.grad(
            sum(loss.sum() for loss in expected.values()), prefixes, allow_unused=True
        )
        for own, other, prefix in zip(mine, theirs, prefixes, strict=True):
            nothing = torch.zeros_like(prefix)
            pair = (nothing if own is None else own, nothing if other is None else other)
            torch.testing.assert_close(*pair, atol=1e-4, rtol=1e-4)


def test_only_tokens_from_loss_from_on_carry_loss():
    text = Text((5, 6, 7, 8, 9), 3)
    found = token_losses(BASE, [text])
    assert len(found.losses) == 2
    whole = token_losses(BASE, [Text(text.tokens, 1)]).losses
    torch.testing.assert_close(found.losses, whole[2:])


def test_a_text_is_scored_alike_alone_and_in_company():
    prefixes = prefixes_of(4, 7)
    texts = [Text(tuple(range(n)), 1, n % 2, 0) for n in range(2, 60)]
    together = token_losses(BASE, texts, prefixes)
    for i, text in enumerate(texts):
        alone = token_losses(BASE, [text], prefixes)
        torch.testing.assert_close(together.losses[together.text == i], alone.losses, atol=1e-5, rtol=1e-5)


def test_losses_of_many_tokens_are_made_in_pieces():
    generator = torch.Generator().manual_seed(0)
    texts = [Text(tuple(torch.randint(256, (100,), generator=generator).tolist()), 1, 0, 0) for _ in range(8)]
    prefixes = prefixes_of(3)
    found = token_losses(BASE, texts, prefixes)
    assert len(found.losses) > 512
    expected = torch.cat(list(oracle(texts, prefixes).values()))
    torch.testing.assert_close(found.losses.sort()[0], expected.sort()[0], atol=1e-4, rtol=1e-5)
    (mine,), (theirs,) = (torch.autograd.grad(losses.mean(), prefixes) for losses in (found.losses, expected))
    torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-4)


def test_weights_of_the_loss_reach_the_gradient():
    prefixes = prefixes_of(3)
    losses = token_losses(BASE, [Text((1, 2, 3), 1, 0, 0)], prefixes).losses
    (first,) = torch.autograd.grad(losses[0], prefixes, retain_graph=True)
    (second,) = torch.autograd.grad(losses[1], prefixes, retain_graph=True)
    (both,) = torch.autograd.grad(losses[0] + 3 * losses[1], prefixes)
    torch.testing.assert_close(both, first + 3 * second)


@pytest.mark.parametrize("tokens", [(3, 4), (3, 4, 5)])
def test_the_likeliest_token_counts_as_correct(tokens):
    found = token_losses(BASE, [Text(tokens, 1)])
    logits = MODEL(torch.tensor([tokens])).logits[0, :-1]
    assert found.correct.tolist() == (logits.argmax(-1) == torch.tensor(tokens[1:])).tolist()
