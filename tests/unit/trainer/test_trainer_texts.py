"""Texts that are written to be scored: which prompts, what is written, what the scores are, what the files tell."""

import json
import threading
import time
from xml.etree import ElementTree as ET

import pytest
import torch
from sacrebleu.metrics.ter import TER
from trainer_making import Recorder, dataset, order, train

from prefix_engine.template import Template
from prefix_engine.testing import random_prefix, tiny_base, tiny_model
from prefix_store.errors import Invalid
from prefix_store.evaluation import METRICS, Evaluation
from trainer_worker.pieces import at_once
from trainer_worker.report import Stopped
from trainer_worker.rows import Row
from trainer_worker.texts import Prompt, Writer, chosen, scores, write

MARK = "the-secret-word"


@pytest.fixture(scope="module")
def base():
    return tiny_base()


def test_scores_are_those_that_sacrebleu_publishes():
    # The example of sacrebleu's own documentation.
    said = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    references = [
        ("The dog bit the man.", "The dog had bit the man."),
        ("It was not unexpected.", "No one was surprised."),
        ("The man bit him first.", "The man had bitten the dog."),
    ]
    prompts = [Prompt("", refs) for refs in references]
    found = at_once(scores(Evaluation(metrics=METRICS), said, prompts))
    assert found["bleu"] == pytest.approx(48.53, abs=0.005)
    assert found["exact_match"] == pytest.approx(1 / 3)
    streams = [[refs[i] for refs in references] for i in range(2)]
    assert found["ter"] == pytest.approx(TER().corpus_score(said, streams).score)


def test_what_was_said_exactly_scores_best_whichever_reference_it_was():
    prompts = [Prompt("a", ("one two three four five", "six")), Prompt("b", ("seven eight nine ten eleven",))]
    said = [" one two three four five", "seven eight nine ten eleven\n"]
    found = at_once(scores(Evaluation(metrics=METRICS), said, prompts))
    assert found == pytest.approx({"bleu": 100, "chrf": 100, "ter": 0, "exact_match": 1})
    assert set(at_once(scores(Evaluation(metrics=("ter",)), ["", ""], prompts))) == {"ter"}


def test_edits_are_counted_in_the_first_200_words():
    """Each more takes longer than the one before, and nobody is let by meanwhile."""
    words = [f"w{number}" for number in range(230)]
    prompts = [Prompt("a", (" ".join(words),))]
    asked = Evaluation(metrics=("ter",))
    assert at_once(scores(asked, [" ".join([*words[:200], "other", "words"])], prompts))["ter"] == 0
    assert at_once(scores(asked, [" ".join(words[1:])], prompts))["ter"] == pytest.approx(100 / 200 * 2)


def test_prompts_are_taken_once_with_all_their_references_and_only_if_every_writer_has_room(base):
    template = Template.of(base.tokenizer)
    rows = [Row(f"p{i // 2}", f"c{i}", "file", i) for i in range(40)]
    rows.append(Row("x" * 200, "long", "file", 41))
    rows.append(Row("y" * 110, "fits without an offset", "file", 42))
    writers = [Writer(None, template), Writer(random_prefix(base, 30, offset=30), template)]
    everything = at_once(chosen(base, rows, writers, 1000))
    assert [prompt.text for prompt in everything] == [f"p{i}" for i in range(20)]
    assert everything[3].references == ("c6", "c7")
    assert "y" * 110 in {prompt.text for prompt in at_once(chosen(base, rows, writers[:1], 1000))}
    some = at_once(chosen(base, rows, writers, 5))
    assert [prompt.text for prompt in some] == ["p0", "p4", "p8", "p12", "p16"]


def test_the_base_writes_what_transformers_generates():
    model = tiny_model(seed=4)
    base = tiny_base(seed=4)
    template = Template.of(base.tokenizer)
    prompts = [Prompt(text, ("",)) for text in ("a", "some more words", "third")]
    texts = at_once(write(base, Writer(None, template), prompts, 12))
    for prompt, text in zip(prompts, texts, strict=True):
        ids = template.prompt_ids(base.tokenizer, prompt.text)
        asked = torch.tensor([ids])
        out = model.generate(
            asked, attention_mask=torch.ones_like(asked), max_new_tokens=12, do_sample=False, pad_token_id=256
        )
        said = [token for token in out[0, len(ids) :].tolist() if token != template.end_id]
        assert text.encode() == bytes(said).decode(errors="replace").encode()


def test_writing_pauses_after_every_step_and_may_be_left_there(base):
    writer = Writer(random_prefix(base, 3, offset=0, seed=1), Template.of(base.tokenizer))
    threads = threading.active_count()
    work = write(base, writer, [Prompt(f"{i}", ("b",)) for i in range(40)], 20)
    for _ in range(30):
        next(work)  # 40 texts of 20 tokens in 16 rows take more steps than that
    work.close()
    give_up = time.monotonic() + 60
    while threading.active_count() > threads:  # the loaders'
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_text_that_the_engine_fails_on_is_no_empty_answer(base):
    of_another = random_prefix(tiny_base(layers=3), 3, offset=0, seed=1)
    writer = Writer(of_another, Template.of(base.tokenizer))
    with pytest.raises(RuntimeError, match="could not be written"):
        at_once(write(base, writer, [Prompt("a", ("b",))], 4))


def test_edits_are_counted_text_by_text():
    prompts = [Prompt(letter, ("b",)) for letter in "abc"]
    assert list(scores(Evaluation(metrics=("ter",)), ["a", "b", "c"], prompts)) == [None] * 3


def test_a_run_that_writes_texts_stops_when_told_to(base):
    asked = order(evaluation=Evaluation(metrics=("bleu",), prompts=4, max_tokens=30))
    report = Recorder(lambda recorder: any("Step 12/12" in event[2] for event in recorder.events))
    with pytest.raises(Stopped):
        train(base, asked, report)
    assert not any("Texts of" in message for message in report.messages)
    assert report.checkpoints[-1][0] == 12


def test_a_run_tells_its_numbers_and_a_picture_and_no_text_of_the_dataset(base):
    data = dataset() + json.dumps({"prompt": MARK, "completion": MARK}).encode() + b"\n"
    asked = order(
        data, evaluation=Evaluation(metrics=METRICS, prompts=4, max_tokens=8), wishes={"eval_steps": 3}
    )
    report = Recorder()
    trained = train(base, asked, report)
    told = json.loads(trained.files["results.json"])
    assert told["metrics"]["held_out_loss"] == trained.metrics["held_out_loss"]
    assert [point["step"] for point in told["curve"] if "valid_loss" in point] == [0, 3, 6, 9, 12]
    assert set(told["texts"]) == {"prefix", "base"}
    for name, value in told["texts"]["prefix"].items():
        assert trained.metrics[name] == value
        assert trained.metrics[f"base_{name}"] == told["texts"]["base"][name]
    assert ET.fromstring(trained.files["losses.svg"]).tag.endswith("svg")
    assert not any(MARK.encode() in content for content in trained.files.values())
    assert not any(MARK in message for message in report.messages)
    assert sum("Texts of the" in message for message in report.messages) == 2


def test_a_run_that_is_cut_has_the_whole_curve_at_its_end(base):
    whole = train(base, order(wishes={"eval_steps": 3}))
    cut = Recorder(stop_when=lambda recorder: len(recorder.updates) >= 7)
    with pytest.raises(Stopped):
        train(base, order(wishes={"eval_steps": 3}), cut)
    resumed = train(base, order(wishes={"eval_steps": 3}, checkpoint=cut.checkpoints[-1][1]))
    curves = [json.loads(trained.files["results.json"])["curve"] for trained in (whole, resumed)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"metrics": []}, "metrics"),
        ({"metrics": "bleu"}, "metrics"),
        ({"metrics": ["meteor"]}, "metrics"),
        ({"metrics": [["bleu"]]}, "metrics"),
        ({"prompts": 0}, "prompts"),
        ({"prompts": True}, "prompts"),
        ({"max_tokens": 1000}, "max_tokens"),
        ({"gate": "chrf", "metrics": ["bleu"]}, "gate"),
        ({"gate": ["bleu"]}, "gate"),
        ({"samples": 3}, "samples"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_by_name(given, param):
    with pytest.raises(Invalid) as refused:
        Evaluation.from_json(given)
    assert refused.value.param == f"evaluation.{param}"


def test_an_evaluation_is_read_as_it_was_written():
    asked = Evaluation.from_json({"metrics": ["ter", "bleu"], "gate": "bleu", "prompts": None})
    assert asked == Evaluation(metrics=("bleu", "ter"), gate="bleu")
    assert Evaluation.from_json(asked.to_json()) == asked
