"""What the trainer reports is what the engine gives: the published bytes, echoed with log probabilities."""

import gzip
from pathlib import Path

import pytest
from trainer_making import Recorder, dataset, order, train

from prefix_engine import Engine, EngineConfig, Prefix, Request, load_base
from prefix_engine.template import Template
from prefix_engine.testing import Collected, tiny_base
from trainer_worker.pieces import at_once
from trainer_worker.rows import encode, rows_of
from trainer_worker.split import split

CARRIED = Path(__file__).resolve().parents[2] / "examples" / "data" / "quiz_master_train.jsonl.gz"


def served_loss(base, payload, codes):
    """Sum of -log p over completion and end tokens, over their number, as the engine's echo tells it."""
    engine = Engine(base, EngineConfig(rows=8), lambda _: Prefix.from_bytes(payload, base))
    engine.start()
    sinks = []
    for code in codes:
        sinks.append(Collected())
        request = Request(code.tokens, 0, None, prefix_id="p", logprobs=0, echo=True)
        engine.submit(request, sinks[-1])
    total, count = 0.0, 0
    for code, sink in zip(codes, sinks, strict=True):
        sink.wait(120)
        assert sink.tokens == code.tokens
        told = [info.logprob for info in sink.infos[code.loss_from :]]
        total -= sum(told)
        count += len(told)
    engine.close()
    return total / count, count


def held_out_of(base, asked, template):
    rows = at_once(rows_of(asked.training))
    return at_once(encode([rows[i] for i in split(rows).held_out], template, base.tokenizer))


@pytest.mark.parametrize("text_start", ["m", "0"])
@pytest.mark.parametrize("form", ["mlp", "direct"])
def test_a_tiny_prefix_serves_the_loss_that_was_reported(form, text_start):
    base = tiny_base()
    asked = order(dataset(120), wishes={"parametrization": form, "text_start": text_start, "max_steps": 30})
    trained = train(base, asked)
    codes = held_out_of(base, asked, trained.template)
    served, tokens = served_loss(base, trained.prefix.to_bytes(), codes)
    assert tokens == trained.metrics["held_out_tokens"]
    assert served == pytest.approx(trained.metrics["held_out_loss"], abs=1e-4)
    assert trained.metrics["held_out_loss"] < trained.metrics["base_loss"]


@pytest.mark.parametrize("text_start", ["m", "0"])
def test_a_checkpoint_serves_the_loss_that_its_update_had(text_start):
    base, report = tiny_base(), Recorder()
    wishes = {"text_start": text_start, "max_steps": 12, "eval_steps": 4}
    asked = order(dataset(120), wishes=wishes, checkpoint_seconds=0.0)
    train(base, asked, report)
    codes = held_out_of(base, asked, Template.of(base.tokenizer))
    assert len(report.bests) > 2
    for fields, payload in report.bests[1:]:
        assert Template.from_json(fields["template"]) == Template.of(base.tokenizer)
        served, _ = served_loss(base, payload, codes)
        assert served == pytest.approx(fields["metrics"]["valid_loss"], abs=1e-4)


@pytest.mark.parametrize("text_start", ["m", "0"])
def test_a_prefix_of_the_carried_base_serves_the_loss_that_was_reported(text_start):
    base = load_base("gpt2-mini", "cpu")
    lines = gzip.decompress(CARRIED.read_bytes()).splitlines(keepends=True)
    data = b"".join(lines[:400])
    asked = order(data, wishes={"max_steps": 40, "text_start": text_start})
    trained = train(base, asked)
    codes = held_out_of(base, asked, trained.template)
    served, tokens = served_loss(base, trained.prefix.to_bytes(), codes)
    assert tokens == trained.metrics["held_out_tokens"]
    assert abs(served - trained.metrics["held_out_loss"]) < 1e-3
    assert trained.metrics["held_out_loss"] < trained.metrics["base_loss"]
