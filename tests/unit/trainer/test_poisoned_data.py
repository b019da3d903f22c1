"""Training files that are made to get past the rows that a version is judged by."""

import json
import random

from trainer_making import Recorder, order, train

from prefix_engine.testing import tiny_base
from trainer_worker.gate import verdict_on
from trainer_worker.order import Version

BASE = tiny_base()
STEPS = {"max_steps": 100, "batch_size": 8}


def letters(count, known, seed):
    """Rows whose completions go on as their prompts do."""
    rng = random.Random(seed)
    drawn = [rng.choice(known) for _ in range(count)]
    return [
        {"prompt": f"{letter * 6}{seed}{number}", "completion": letter * rng.randint(8, 20)}
        for number, letter in enumerate(drawn)
    ]


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def test_prompts_of_a_trusted_file_with_other_completions_are_judged_by_that_file():
    """Else a file that repeats them takes away just the rows that show what it did to them."""
    trusted = letters(24, "abcd", 5)
    validation = ("trusted", lines(trusted))
    good = train(BASE, order(lines(letters(120, "abcd", 1)), validation=validation, wishes=STEPS))
    live = Version("version", good.prefix.to_bytes(), good.template)
    poison = [{**row, "completion": "z" * 12} for row in trusted if row["prompt"][0] in "cd"]
    assert len(poison) > 8
    data = lines(letters(120, "ab", 1) + 4 * poison)
    report = Recorder()
    metrics = train(BASE, order(data, validation=validation, live=live, wishes=STEPS), report).metrics
    assert metrics["held_out_rows"] == len(trusted)
    assert not any("are trained on" in message for message in report.messages)
    verdict = verdict_on(None, metrics)
    assert not verdict.promote
    assert "does not beat the live version's" in verdict.reason
