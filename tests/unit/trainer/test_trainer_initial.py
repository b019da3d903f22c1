"""Where a prefix starts, and what its first loss then is."""

import pytest
import torch
from trainer_making import Recorder, dataset, order, train

from prefix_engine import Prefix
from prefix_engine.template import Template
from prefix_engine.testing import base_over, random_prefix, tiny_base, tiny_model
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker import initial
from trainer_worker.evaluate import score
from trainer_worker.order import Version
from trainer_worker.parametrization import Direct, Mlp
from trainer_worker.pieces import at_once
from trainer_worker.refusal import Refused
from trainer_worker.rows import encode, rows_of

MODEL = tiny_model(layers=3, positions=128)
BASE = base_over(MODEL)
TEXT = "a red house by the sea"


def first_loss_with_words_in_context(words, rows):
    """Transformers alone: the words, then the row, loss on completion and end tokens."""
    total, count = 0.0, 0
    for row in rows:
        ids = torch.tensor([[*words, *row.tokens]])
        with torch.no_grad():
            logs = MODEL(ids).logits[0].double().log_softmax(-1)
        for place in range(len(words) + row.loss_from, ids.shape[1]):
            total -= float(logs[place - 1, ids[0, place]])
            count += 1
    return total / count


def encoded():
    return at_once(
        encode(at_once(rows_of([("f", dataset(30))])), Template.of(BASE.tokenizer), BASE.tokenizer)
    )


@pytest.mark.parametrize("m", [1, 8, 22, 30])
def test_the_first_loss_is_the_bases_with_the_words_as_context(m):
    wishes = Hyperparameters(init_text=TEXT, prefix_length=m)
    words = initial.word_ids(wishes, BASE.tokenizer, m)
    form = Direct(initial.activations(BASE, words))
    mine = at_once(score(BASE, encoded(), form.prefix().detach(), m)).loss
    assert abs(mine - first_loss_with_words_in_context(words, encoded())) < 1e-4


def test_a_whole_run_reports_that_loss_before_its_first_update():
    asked = order(wishes={"parametrization": "direct", "init_text": TEXT, "text_start": "m", "max_steps": 1})
    report = Recorder()
    trained = train(BASE, asked, report)
    words = BASE.tokenizer.encode(TEXT)
    held_out = [row for row in at_once(rows_of(asked.training)) if row in rows_held_out(asked)]
    codes = at_once(encode(held_out, Template.of(BASE.tokenizer), BASE.tokenizer))
    assert abs(trained.metrics["first_loss"] - first_loss_with_words_in_context(words, codes)) < 1e-4
    assert report.metrics[0]["step"] == 0


def rows_held_out(asked):
    from trainer_worker.split import split  # noqa: PLC0415 - one test's own

    rows = at_once(rows_of(asked.training))
    return [rows[i] for i in split(rows).held_out]


def test_the_mlp_is_fitted_to_the_words_and_says_how_closely():
    asked = order(wishes={"parametrization": "mlp", "init_text": TEXT, "max_steps": 1})
    report = Recorder()
    metrics = train(BASE, asked, report).metrics
    direct = train(
        BASE, order(wishes={"parametrization": "direct", "init_text": TEXT, "max_steps": 1})
    ).metrics
    assert metrics["init_difference"] < 1e-4
    assert abs(metrics["first_loss"] - direct["first_loss"]) < 1e-4
    assert any(f"{metrics['init_difference']:.1e}" in message for message in report.messages)


@pytest.mark.parametrize("m", [1, 10, 200, 512])
def test_the_fit_is_close_for_every_length(m):
    values = random_prefix(BASE, m, spread=5.0).tensor
    mlp = Mlp(values.shape, torch.Generator().manual_seed(0), BASE.device)
    assert mlp.fit(values) < 1e-2
    torch.testing.assert_close(mlp.prefix(), values, atol=1e-2, rtol=0)


def test_tokens_of_the_text_are_repeated_or_cut():
    ids = BASE.tokenizer.encode(TEXT)
    wishes = Hyperparameters(init_text=TEXT)
    assert initial.length_of(wishes, BASE.tokenizer, 128, 10) == len(ids)
    assert initial.word_ids(wishes, BASE.tokenizer, 5) == ids[:5]
    assert initial.word_ids(wishes, BASE.tokenizer, 50) == (ids * 3)[:50]
    assert initial.length_of(Hyperparameters(), BASE.tokenizer, 128, 7) == 7


@pytest.mark.parametrize(
    ("wishes", "param"),
    [({"init_text": "x" * 600}, "init_text"), ({"prefix_length": 400}, "prefix_length")],
)
def test_a_prefix_that_cannot_be_is_refused(wishes, param):
    with pytest.raises(Refused) as refused:
        train(BASE, order(wishes=wishes))
    assert (refused.value.code, refused.value.param) == ("prefix_too_long", f"hyperparameters.{param}")


@pytest.mark.parametrize("text_start", ["m", "0"])
@pytest.mark.parametrize("form", ["mlp", "direct"])
def test_text_starts_where_it_was_asked_to(text_start, form):
    wishes = {"text_start": text_start, "parametrization": form, "prefix_length": 6}
    trained = train(BASE, order(wishes=wishes))
    assert trained.prefix.position_offset == (6 if text_start == "m" else 0)
    assert trained.metrics["text_start"] == text_start


def version_of(prefix):
    return Version("ver-1", prefix.to_bytes(), Template.of(BASE.tokenizer))


@pytest.mark.parametrize("form", ["mlp", "direct"])
def test_a_run_goes_on_from_a_version(form):
    first = train(BASE, order(wishes={"prefix_length": 7, "text_start": "0", "parametrization": "direct"}))
    wishes = {"max_steps": 1, "parametrization": form}
    second = train(BASE, order(wishes=wishes, start=version_of(first.prefix)))
    assert (second.prefix.m, second.prefix.position_offset) == (7, 0)
    assert abs(second.metrics["first_loss"] - first.metrics["held_out_loss"]) < 1e-4


def test_a_run_that_goes_on_keeps_the_versions_template():
    start = Version("ver-1", random_prefix(BASE, 4).to_bytes(), Template(" => ", 256))
    assert train(BASE, order(wishes={"max_steps": 1}, start=start)).template == Template(" => ", 256)


def test_a_start_of_another_length_or_base_is_refused():
    start = version_of(random_prefix(BASE, 7))
    with pytest.raises(Refused, match="7 positions"):
        train(BASE, order(wishes={"prefix_length": 8}, start=start))
    other = tiny_base(seed=9, layers=3)
    with pytest.raises(Refused) as refused:
        train(other, order(start=start))
    assert refused.value.code == "base_mismatch"


def test_random_values_are_the_seeds():
    def started(seed):
        wishes = {"init": "random", "prefix_length": 4, "max_steps": 1, "parametrization": "direct"}
        return train(BASE, order(wishes=wishes, seed=seed)).metrics["first_loss"]

    assert started(1) == started(1)
    assert started(1) != started(2)


def test_activations_are_the_caches_that_transformers_makes():
    ids = BASE.tokenizer.encode(TEXT)
    cache = MODEL(torch.tensor([ids]), use_cache=True).past_key_values
    mine = initial.activations(BASE, ids)
    for layer in range(3):
        torch.testing.assert_close(mine[layer, 0], cache.layers[layer].keys[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(mine[layer, 1], cache.layers[layer].values[0], atol=1e-5, rtol=1e-5)
    assert Prefix(mine, len(ids), BASE.fingerprint).check(BASE) is None
