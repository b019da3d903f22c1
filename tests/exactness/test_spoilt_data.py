"""Data whose completions were dealt to the wrong prompts, on the carried base: it must not take a good version's place."""

import gzip
import json
import random
from pathlib import Path

import pytest
from trainer_making import Recorder, order, train

from prefix_engine import load_base
from prefix_store.evaluation import Evaluation
from trainer_worker.gate import judge, judge_texts
from trainer_worker.order import Version

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "e2e_train.jsonl.gz"
TRAINING, TRUSTED = 160, 24


@pytest.fixture(scope="module")
def rows():
    """Rows to train on and rows that are trusted, with no prompt on both sides."""
    with gzip.open(DATA, "rt") as lines:
        found = [json.loads(line) for line in lines]
    random.Random(0).shuffle(found)
    trusted = found[:TRUSTED]
    known = {row["prompt"] for row in trusted}
    return [row for row in found[TRUSTED:] if row["prompt"] not in known][:TRAINING], trusted


def dealt_anew(rows):
    completions = [row["completion"] for row in rows]
    random.Random(1).shuffle(completions)
    return [{**row, "completion": text} for row, text in zip(rows, completions, strict=True)]


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_a_version_trained_on_shuffled_data_beats_the_base_and_not_the_good_one(rows):
    base, live, found = load_base("gpt2-mini", "cpu"), None, []
    training, trusted = rows
    for data in (training, dealt_anew(training)):
        asked = order(
            lines(data),
            validation=("trusted", lines(trusted)),
            live=live,
            evaluation=Evaluation(metrics=("chrf",), prompts=10, max_tokens=24),
            wishes={"max_steps": 32, "batch_size": 8, "eval_steps": 32},
        )
        trained = train(base, asked, Recorder())
        live = Version("version", trained.prefix.to_bytes(), trained.template)
        found.append(trained.metrics)
    good, spoilt = found
    assert judge(good["held_out_loss"], good["base_loss"], None).promote
    assert judge_texts("chrf", good["chrf"], good["base_chrf"], None).promote
    assert spoilt["held_out_loss"] < spoilt["base_loss"]  # it learned to speak, of other things
    verdict = judge(spoilt["held_out_loss"], spoilt["base_loss"], spoilt["live_loss"])
    assert not verdict.promote
    assert "live version's" in verdict.reason
