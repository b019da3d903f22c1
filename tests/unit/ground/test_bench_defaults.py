"""The study of defaults: resumable, of one base alone, and what it chooses is not chosen by what it reports."""

import json
import random
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from bench.contestants.train_trial import OWN, _wishes
from bench.defaults import __main__ as command
from bench.defaults import plots, table, trials
from bench.defaults.results import OtherBase, Results, work
from bench.defaults.study import Study
from bench.defaults.trials import AROUND, DATASETS, HALVES, MIDDLE, PARTS, SHORT, Settings, Trial
from trainer_worker.auto import AUTOS

ROOT = Path(__file__).resolve().parents[3]
BASE = {"base": "gpt2-mini", "fingerprint": "a" * 64}


def result(trial, loss, **more):
    settings = None if trial.settings is None else asdict(trial.settings)
    auto = None if trial.settings else trials.autos()
    told = {"base_loss": 4.0, "seconds": 10.0, "work": work(trial), "loss": loss}
    return (
        {"key": trial.key(BASE["fingerprint"]), **BASE, **asdict(trial), "settings": settings, "auto": auto}
        | told
        | more
    )


def gain(trial):
    """Made up: 3 positions suit the half that chooses, 30 the one that reports, a rate of 0.03 everybody."""
    settings = trial.settings or MIDDLE
    found = {0.03: -0.2}.get(settings.rate, 0.0)
    if trial.dataset in HALVES["choosing"]:
        return found + {3: -0.1, 30: 0.1}.get(settings.m, 0.0)
    return found + {3: 0.1, 30: -0.1}.get(settings.m, 0.0)


@pytest.fixture(scope="module")
def found():
    draw = random.Random(0)
    asked = trials.trials(PARTS, SHORT, 2)
    return [result(trial, 3.0 + gain(trial) + draw.uniform(0, 0.01)) for trial in asked]


def called(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["bench.defaults", *map(str, words)])
    command.main()


def test_no_run_is_made_twice_and_each_setting_is_tried_on_all_datasets_first():
    asked = trials.trials(PARTS, SHORT, 2)
    keys = [trial.key("base") for trial in asked]
    assert len(set(keys)) == len(keys)
    assert [trial.dataset for trial in asked] == list(SHORT) * (len(asked) // len(SHORT))
    order = [(trial.seed, trial.examples != 100) for trial in asked if trial.part in table.TITLES]
    assert order == sorted(order)
    both = {half: [name for name in SHORT if name in names] for half, names in HALVES.items()}
    assert all(len(names) > 1 for names in both.values())
    assert not set(HALVES["choosing"]) & set(HALVES["reporting"])


def test_only_what_is_left_to_the_product_is_run_again_when_auto_changes(monkeypatch):
    asked = trials.trials(PARTS, SHORT, 1)
    before = {trial: trial.key("base") for trial in asked}
    monkeypatch.setattr(trials, "AUTOS", (replace(AUTOS[0], rows=50), *AUTOS))
    changed = {trial for trial in asked if trial.key("base") != before[trial]}
    assert changed == {trial for trial in asked if trial.settings is None}
    assert len({trial.key(base) for trial in asked[:1] for base in ("one", "other")}) == 2


def test_every_setting_reaches_the_trainer():
    settings = Settings(m=3, form="mlp", start="own", rate=0.02, updates=7, batch=5, dropout=0.2)
    told = _wishes(settings, "quiz_master").to_json()
    assert told == {
        "prefix_length": 3, "parametrization": "mlp", "init": "words", "init_text": OWN["quiz_master"], "max_steps": 7,
        "learning_rate": 0.02, "batch_size": 5, "dropout": 0.2, "text_start": "0",
    }  # fmt: skip
    assert _wishes(replace(settings, start="random"), "quiz_master").to_json().get("init_text") is None
    assert set(OWN) == set(DATASETS)
    for levels in AROUND.values():
        for some in levels.values():
            assert all(settings != MIDDLE for settings in some)


def test_settings_are_chosen_on_one_half_alone(found):
    for part, label, sure in (("m", "3", False), ("rate", "0.03", True)):
        best = table.chosen(table.lines(found, part, 100))
        assert (best.label, table.clear(best)) == (label, sure)
    told = table.report(found)
    assert "Clear: 0.03 is better than the middle in every run of both halves." in told
    assert "Not clear: 3 is not better than the middle in every run of both halves." in told
    assert "| **3** | -0.1" in told
    assert "| 4 of 4 | +0.1" in told


def test_a_part_without_runs_on_both_halves_is_left_out(found):
    of_one = [r for r in found if r["dataset"] in HALVES["choosing"] or r["settings"] == asdict(MIDDLE)]
    assert len(table.lines(found, "m", 100)) == 5
    assert [line.settings for line in table.lines(of_one, "m", 100)] == [MIDDLE]
    assert table.TITLES["m"] not in table.report(of_one)
    assert table.report([]) == table.NOTHING


def test_a_run_that_diverged_is_counted_and_not_averaged(found):
    refused = [
        r | {"refused": "diverged"} if r["settings"] == asdict(replace(MIDDLE, rate=0.3)) else r
        for r in found
    ]
    for r in refused:
        if "refused" in r:
            del r["loss"]
    labels = [line.label for line in table.lines(refused, "rate", 100)]
    assert labels == ["0.01", "0.03", "0.1"]
    assert f"Diverged: {sum('refused' in r for r in refused)}." in table.report(refused)


def test_results_of_two_bases_are_refused(tmp_path, monkeypatch, found):
    results = Results(tmp_path / "results.jsonl")
    results.append(found[0])
    assert results.require(BASE["fingerprint"]) == BASE["fingerprint"]
    with pytest.raises(OtherBase, match="Remove that file"):
        results.require("b" * 64)
    results.append(found[1] | {"fingerprint": "b" * 64})
    with pytest.raises(SystemExit, match="would mix bases"):
        called(monkeypatch, "--report", "--into", tmp_path)


def test_the_document_tells_what_auto_means():
    document = (ROOT / "docs" / "defaults.md").read_text()
    assert table.meaning() in document
    new = table.written(document, "| new |")
    assert "<!-- defaults: tables -->\n\n| new |\n\n<!-- /defaults -->" in new
    assert table.written(new, "| new |") == new
    with pytest.raises(ValueError, match="autos"):
        table.written("# Nothing", "text")


def test_the_same_results_give_the_same_pictures(tmp_path, found):
    drawn = plots.draw(found, tmp_path / "one")
    assert drawn.keys() == plots.TITLES.keys()
    for name, path in plots.draw(found, tmp_path / "other").items():
        assert path.read_bytes() == drawn[name].read_bytes()
        assert b"nats a token" in path.read_bytes()
    assert plots.draw([], tmp_path / "none") == dict.fromkeys(plots.TITLES)


def test_a_study_is_made_in_pieces(tmp_path, monkeypatch, capfd):
    words = [
        "--quick",
        "--part",
        "dropout",
        "--datasets",
        "quiz_master",
        "--into",
        tmp_path,
        "--workers",
        "1",
    ]
    called(monkeypatch, *words, "--budget", "60")
    path = tmp_path / "results.jsonl"
    made = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(r["examples"], r["settings"]["dropout"]) for r in made] == [
        (100, 0.0), (100, 0.1), (100, 0.3), (500, 0.0), (500, 0.1),
    ]  # fmt: skip
    for one in made:
        assert one["loss"] != one["held_out_loss"]
        assert one["resolved"]["dropout"] == one["settings"]["dropout"]
        assert one["updates"] == one["resolved"]["max_steps"] == 4
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1])[:-20])
    capfd.readouterr()
    called(monkeypatch, *words, "--budget", "60")
    assert "5 runs, 3 of them finished before" in capfd.readouterr().out
    again = Results(path).all()
    assert {r["key"]: r["loss"] for r in again} == {r["key"]: r["loss"] for r in made}


def test_no_run_begins_that_would_end_too_late(tmp_path):
    results = Results(tmp_path / "results.jsonl")
    study = Study(results, {}, 1)
    for trial in trials.trials(("m",), SHORT, 1):
        study._waiting.put(trial)
    study._speed, study._until = results.speed(), time.monotonic() + 0.1
    study._run_all(None)  # asks no process
    assert study._waiting.empty()
    assert results.all() == []


def test_an_estimate_follows_from_what_was_run(tmp_path, found):
    results = Results(tmp_path / "results.jsonl")
    first = results.speed()
    trial = Trial("m", "quiz_master", 100, 0, MIDDLE)
    results.append(result(trial, 3.0, seconds=20.0))
    assert results.speed() == pytest.approx(work(trial) / 20.0)
    assert results.speed() != first
    slow = Trial("m", "quiz_master", 100, 0, replace(MIDDLE, updates=2 * MIDDLE.updates))
    assert work(slow) == 2 * work(trial)
    assert work(Trial("auto", "quiz_master", None, 0, None)) >= work(
        Trial("auto", "quiz_master", 50, 0, None)
    )
