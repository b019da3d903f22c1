"""What comes before a job's first update: its files are read in pieces, so that others are let by."""

import hashlib
import json

import pytest
from trainer_making import Recorder, dataset, order, train

from prefix_engine.template import Template
from prefix_engine.testing import random_prefix, tiny_base
from prefix_store import jsonl
from prefix_store.evaluation import Evaluation
from trainer_worker import rows
from trainer_worker.order import Version
from trainer_worker.pieces import at_once
from trainer_worker.report import Stopped
from trainer_worker.together import Together
from trainer_worker.training import Training

BASE = tiny_base()
FEW = 6 * 128  # characters of a piece, with what each row takes beside its own: five rows or fewer


@pytest.fixture
def seen(monkeypatch):
    """Rows that were read and rows that were encoded, so far."""
    counts = {"read": 0, "encoded": 0}
    read, encoded = jsonl.check_row, Template.completion_ids

    def reading(*given):
        counts["read"] += 1
        return read(*given)

    def encoding(*given):
        counts["encoded"] += 1
        return encoded(*given)

    monkeypatch.setattr(jsonl, "check_row", reading)
    monkeypatch.setattr(Template, "completion_ids", encoding)
    return counts


def pieces_of(work, seen):
    """Rows read and encoded in each piece."""
    pieces, before = [], dict(seen)
    for _ in work:
        pieces.append({name: seen[name] - before[name] for name in seen})
        before = dict(seen)
    return [*pieces, {name: seen[name] - before[name] for name in seen}]


def test_no_piece_reads_or_encodes_more_than_some_rows(seen):
    training = Training(BASE, order(dataset(10_000)), Recorder())
    pieces = pieces_of(training.prepare(), seen)
    assert seen == {"read": 10_000, "encoded": 10_000}
    assert max(piece["read"] for piece in pieces) <= 2000
    assert (
        max(piece["encoded"] for piece in pieces) <= 4000
    )  # of the last of one side and the first of the other
    assert training._run.done == 0


def test_long_rows_make_pieces_of_fewer(seen):
    lines = [json.dumps({"prompt": "p" * 60_000, "completion": str(number)}) for number in range(40)]
    files = [("file-1", "\n".join(lines).encode())]
    assert max(piece["read"] for piece in pieces_of(rows.rows_of(files), seen)) <= 6
    found = at_once(rows.rows_of(files))
    work = rows.encode(found, Template.of(BASE.tokenizer), BASE.tokenizer)
    assert max(piece["encoded"] for piece in pieces_of(work, seen)) <= 4


def test_files_are_read_apart(seen):
    files = [(f"file-{number}", dataset(5, seed=number)) for number in range(4)]
    assert [piece["read"] for piece in pieces_of(rows.rows_of(files), seen)] == [5, 5, 5, 5]
    assert len(at_once(rows.rows_of(files))) == 20


def test_a_job_prepared_in_pieces_ends_as_one_that_was_not(monkeypatch):
    live = Version("v", random_prefix(BASE, 4).to_bytes(), Template.of(BASE.tokenizer))
    asked = order(live=live, evaluation=Evaluation(metrics=("chrf",), prompts=4, max_tokens=4))
    whole = train(BASE, asked)
    monkeypatch.setattr("trainer_worker.rows._PIECE", FEW)
    monkeypatch.setattr("trainer_worker.texts._PIECE", FEW)
    report = Recorder()
    pieces = train(BASE, asked, report)
    assert digest(whole) == digest(pieces)
    assert without_time(whole.metrics) == without_time(pieces.metrics)


def test_neighbours_are_moved_and_jobs_dropped_while_one_is_prepared(monkeypatch):
    monkeypatch.setattr("trainer_worker.rows._PIECE", FEW)
    together, moved, late = Together(BASE), Recorder(), Recorder()
    together.join("moved", Training(BASE, order(dataset(10), wishes={"max_steps": 500}), moved).steps())
    while not moved.updates:
        together.step()
    together.join("late", Training(BASE, order(dataset(400)), late).steps())
    before = len(moved.updates)
    for _ in range(60):
        together.step()
    assert len(moved.updates) - before >= 20
    assert late.settings is None  # it is still prepared
    together.drop("late")
    assert len(together) == 1


def test_a_job_that_is_to_stop_while_it_is_prepared_does_and_leaves_no_state(monkeypatch):
    monkeypatch.setattr("trainer_worker.rows._PIECE", FEW)
    report = Recorder(lambda told: told.asked > 3)
    with pytest.raises(Stopped):
        train(BASE, order(dataset(400)), report)
    assert report.asked == 4
    assert report.checkpoints == []


def digest(trained):
    return hashlib.sha256(trained.prefix.to_bytes()).hexdigest()


def without_time(metrics):
    return {name: value for name, value in metrics.items() if name != "seconds"}
