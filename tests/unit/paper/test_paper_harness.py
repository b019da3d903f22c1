"""The harness around the methods: tasks, studies, results that are kept, tables."""

import argparse
import json
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest

from bench.paper import __main__ as command
from bench.paper import dart, metrics, plots, settings, studies, table
from bench.paper.host import open_host
from bench.paper.job import Job
from bench.paper.published import cited
from bench.paper.records import Records
from bench.paper.run import plan_of, run, task_of, wishes_of
from bench.paper.settings import METHODS, settings_of
from bench.paper.tasks import TASKS, UNSEEN, cut, load, sized
from trainer_worker.pieces import at_once
from trainer_worker.plan import resolve
from trainer_worker.rows import encode


@pytest.fixture(scope="module")
def host():
    return open_host("gpt2-mini", "cpu")


@pytest.mark.parametrize("name", TASKS)
def test_nothing_is_chosen_or_trained_by_what_is_scored(name):
    task = load(name)
    sides = [{row.prompt for row in rows} for rows in (task.training, task.held_out)]
    asked = {one.prompt for one in task.scored}
    assert all(sides)
    assert not sides[0] & sides[1]
    assert not asked & (sides[0] | sides[1])


def test_dart_is_split_by_a_fixed_seed():
    first, second = load("dart"), load("dart")
    assert first == second
    assert len(first.scored) == 142
    assert len(first.training) + len(first.held_out) == 280


def dart_line(prompt):
    return {"prompt": prompt, "references": [prompt]}


def test_lines_of_one_table_stay_together():
    prompts = [
        "Aromi : FOOD : French",
        "Cocum : AREA : riverside",
        "Zizzi : FOOD : Chinese | Zizzi : PRICE : high",  # with the first, so the one between too
        "[TABLECONTEXT] : [TITLE] : Rivers | Cam : LENGTH : 69",
        "Ouse : MOUTH : The Wash",
        "[TABLECONTEXT] : [TITLE] : Rivers | Nene : SOURCE : Naseby",
        "Athens : YEAR : 2004",
    ]
    found = dart.tables([dart_line(prompt) for prompt in prompts])
    assert [[line["prompt"] for line in table] for table in found] == [prompts[:3], prompts[3:6], prompts[6:]]


def test_no_table_of_dart_is_on_two_sides():
    lines = [dart_line(f"place {row} : COLUMN_{row // 5} : value : {row}") for row in range(300)]
    sides = dart.sides(lines)
    columns = [{line["prompt"].split(" : ")[1] for line in side} for side in sides]
    assert sum(map(len, sides)) == 300
    assert not columns[0] & columns[1]
    assert not columns[0] & columns[2]
    assert not columns[1] & columns[2]
    titles = [{part for row in rows for part in row.prompt.split(" | ") if "[TITLE]" in part}
              for rows in (load("dart").training, load("dart").held_out, load("dart").scored)]  # fmt: skip
    assert all(titles)
    assert not titles[0] & titles[2]
    assert not titles[0] & titles[1]


def test_extrapolation_trains_and_chooses_on_other_categories_than_it_scores():
    task = load("webnlg", extrapolate=True)
    known = load("webnlg")
    assert {one.group for one in task.scored} == {"seen", "unseen"}
    assert len(task.scored) == len(known.scored)
    texts, all_texts = ({(row.prompt, row.completion) for row in one.training} for one in (task, known))
    assert texts < all_texts
    assert len(UNSEEN) == 3
    with pytest.raises(ValueError, match="--task webnlg"):
        load("e2e", extrapolate=True)


def test_a_smaller_task_is_the_same_for_the_same_sample_and_another_for_another():
    task = load("dart")
    first, again, other = (sized(task, 50, sample, 12) for sample in (0, 0, 1))
    assert first == again
    assert len(first.training) == 50
    assert len(first.scored) == len(set(first.scored)) == 12
    assert set(first.training) != set(other.training)
    assert first.scored == other.scored
    assert set(first.training) <= set(task.training)
    assert set(first.held_out) <= set(task.held_out)


def test_low_data_has_rates_of_its_own_and_no_other_study_takes_them():
    few = {study: Job(study, "e2e", "fine-tuning", rows=100) for study in studies.STUDIES}
    low = {study for study, job in few.items() if job.settings("gpt2-mini").source == settings.LOW_RATES}
    assert low == {"low-data", "init", "rates"}
    assert Job("rates", "e2e", "fine-tuning", rows=1000).settings("gpt2-mini").source == settings.RATES
    assert few["main"].settings("gpt2-medium").epochs == 5


def test_low_data_takes_the_rates_of_the_nearest_number_of_rows():
    def rate(method, rows):
        return Job("low-data", "e2e", method, rows=rows).settings("gpt2-mini").rate

    assert [rate("prefix", rows) for rows in (50, 100, 200, 500)] == [0.3, 0.3, 0.3, 0.1]
    assert {rate("fine-tuning", rows) for rows in (50, 100, 200, 500)} == {3e-4}


def test_low_data_on_the_papers_checkpoints_is_the_papers_codes(host):
    job = Job("low-data", "e2e", "fine-tuning", rows=50)
    found = job.settings("gpt2-medium")
    assert (found.rate, found.epochs, found.steps, found.batch, found.warmup) == (5e-5, None, 400, 10, 100)
    task = task_of(job, host)
    plan = plan_of(job, found, at_once(encode(task.training, host.template, host.base.tokenizer)))
    assert (plan.updates, plan.warmup, plan.batch_size) == (400, 100, 10)
    assert job.settings("gpt2-medium").source == settings.LOW_CODE
    assert replace(job, epochs=3).settings("gpt2-medium").steps is None


def test_low_data_holds_out_thirty_percent_of_the_size():
    task = load("e2e")
    assert len(sized(task, 200, 0, None, low=True).held_out) == 60
    assert len(sized(task, 200, 0, None).held_out) == 20


def test_low_data_draws_each_number_of_rows_by_itself():
    task = load("e2e")
    fifty, hundred = (set(sized(task, rows, 0, None, low=True).training) for rows in (50, 100))
    assert len(fifty & hundred) < 5
    assert set(sized(task, 50, 0, None).training) < set(sized(task, 100, 0, None).training)


def test_more_rows_than_there_are_are_refused():
    task = load("dart")
    there = len(task.training)
    assert len(sized(task, there, 0, None).training) == there
    for rows, low in ((there + 1, False), (there, True)):
        with pytest.raises(ValueError, match=f"--rows {rows}: dart has {there} to train on"):
            sized(task, rows, 0, None, low=low)


def test_no_scored_input_where_none_is_asked_for():
    assert sized(load("dart"), 20, 0, 0).scored == []


def test_long_inputs_are_cut_to_the_tasks_length(host):
    task = replace(sized(load("scitldr"), 20, 0, 4), prompt_tokens=30)
    short = cut(task, host)
    assert max(len(host.encode(row.prompt)) for row in short.training) <= 32
    assert short.training[0].prompt == task.training[0].prompt[: len(short.training[0].prompt)]
    assert [row.completion for row in short.training] == [row.completion for row in task.training]


def arguments(**given):
    asked = {
        "study": "main", "task": "e2e", "methods": None, "rows": None, "samples": None, "seeds": None, "steps": None,
        "epochs": None, "rate": None, "limit_inputs": None, "decoding": "greedy,beam5",
    }  # fmt: skip
    return argparse.Namespace(**{**asked, **given})


def test_low_data_is_ten_models_a_point_for_each_of_two_methods():
    jobs = studies.jobs(arguments(study="low-data"))
    assert len(jobs) == 4 * 10 * 2
    assert {(job.rows, job.method) for job in jobs} == {
        (rows, method) for rows in (50, 100, 200, 500) for method in ("prefix", "fine-tuning")
    }
    assert len({job.key("gpt2-mini", "print") for job in jobs}) == len(jobs)


def test_every_study_has_jobs_whose_keys_differ_and_untrained_methods_run_once():
    for study in studies.STUDIES:
        jobs = studies.jobs(arguments(study=study, task="webnlg"))
        assert jobs, study
        assert len({job.key("gpt2-mini", "print") for job in jobs}) == len(jobs), study
    jobs = studies.jobs(arguments())
    assert sum(job.method == "base" for job in jobs) == 1
    assert sum(job.method == "prefix" for job in jobs) == 3


def test_choosing_rates_writes_and_scores_nothing():
    jobs = studies.jobs(arguments(study="rates"))
    assert {job.limit_inputs for job in jobs} == {0}
    assert {job.decodings for job in jobs} == {()}
    assert len({job.rate for job in jobs if job.method == "fine-tuning"}) > 2
    asked = studies.jobs(arguments(study="rates", methods="fine-tuning,infix-10", rate=2.0))
    assert [(job.method, job.rate) for job in asked] == [("fine-tuning", 2.0), ("infix-10", 2.0)]


def test_length_and_extrapolation_have_three_seeds():
    for study in ("length", "extrapolation"):
        jobs = studies.jobs(arguments(study=study, task="webnlg"))
        assert {job.seed for job in jobs} == {0, 1, 2}, study


def test_a_models_key_does_not_know_how_it_writes():
    job = Job("main", "e2e", "prefix")
    assert job.key("gpt2-mini", "print") == job.also(["beam5"]).key("gpt2-mini", "print")
    assert job.also(["beam5"]).decodings == ("greedy", "beam5")
    assert job.key("gpt2-mini", "print") != replace(job, seed=1).key("gpt2-mini", "print")


def test_kept_results_are_found_again_but_where_rows_are_drawn_otherwise(host):
    kept = (Path(__file__).resolve().parents[3] / "docs" / "results" / "paper.jsonl").read_text().splitlines()
    names = [field.name for field in fields(Job)]
    for record in map(json.loads, kept):
        job = Job(**{name: record[name] for name in names})
        if record.get("draw", 1) == job.draw:
            assert job.key("gpt2-mini", host.base.fingerprint) == record["key"], record
        else:
            assert job.low


@pytest.mark.parametrize(
    "kind", ["emb", "infix", "prefix", "adapter-0.1", "adapter-3", "ft-top2", "fine-tuning"]
)
def test_a_rate_is_the_best_of_the_kept_ones_and_says_on_which_sides_there_are_others(kind):
    kept = (Path(__file__).resolve().parents[3] / "docs" / "results" / "paper.jsonl").read_text().splitlines()
    found, losses = settings_of(kind, "gpt2-mini", "e2e"), {}
    for record in map(json.loads, kept):
        whole = (record["study"], record["task"], record["rows"]) == ("rates", "e2e", None)
        if whole and record["method"] in {kind, f"{kind}-{found.size}"}:
            losses[record["rate"]] = record["held_out_loss"]
    assert min(losses, key=losses.get) == found.rate
    assert min(losses) < found.rate
    assert found.source == (settings.HIGHEST if found.rate == max(losses) else settings.RATES)


def test_the_start_study_has_random_irrelevant_and_relevant_starts():
    jobs = studies.jobs(arguments(study="init", samples=1, seeds=1))
    assert {job.start for job in jobs} == {"uniform", "random", "words"}
    assert {"elephant", "table-to-text:"} <= {job.words for job in jobs}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_every_method_has_settings_with_their_source(method, task):
    for base in ("gpt2-mini", "gpt2-medium"):
        found = settings_of(method, base, task)
        assert found.source
        if base == "gpt2-medium" and found.source == settings.TABLE_5:
            assert found.epochs


def test_the_papers_own_settings_are_used_on_its_checkpoints():
    prefix = settings_of("prefix", "gpt2-medium", "e2e")
    assert (prefix.rate, prefix.epochs, prefix.batch, prefix.size) == (8e-5, 5, 10, 5)
    assert (prefix.form, prefix.text_start) == ("mlp", "m")
    tuned = settings_of("fine-tuning", "gpt2-medium", "webnlg")
    assert (tuned.rate, tuned.epochs, tuned.batch) == (1e-5, 10, 6)
    assert settings_of("prefix-40", "gpt2-medium", "e2e").size == 40
    with pytest.raises(ValueError, match="choose of base"):
        settings_of("prompt", "gpt2-mini", "e2e")


def test_every_method_gets_the_updates_and_batches_of_the_prefix(host):
    job = Job("main", "dart", "prefix", rows=60)
    task = task_of(job, host)
    codes = at_once(encode(task.training, host.template, host.base.tokenizer))
    wishes = wishes_of(job, job.settings("gpt2-mini"), task)
    ours = resolve(wishes, m=10, position_offset=0, rows=len(codes), seed=0)
    for method in ("fine-tuning", "adapter-3", "emb-10", "search-10"):
        other = replace(job, method=method)
        plan = plan_of(other, other.settings("gpt2-mini"), codes)
        same = ("updates", "batch_size", "warmup", "eval_every", "weight_decay", "seed")
        assert [getattr(plan, name) for name in same] == [getattr(ours, name) for name in same]
        assert (plan.patience == ours.patience) != (method == "search-10")
        assert method != "search-10" or plan.patience > plan.updates  # it never stops early


def test_the_papers_figures_stand_by_base_task_and_method():
    assert cited("gpt2-medium", "e2e", "all", "prefix")[0]["bleu_uncased"] == 69.7
    assert cited("gpt2-medium", "e2e", "all", "emb-20")[0]["nist"] == 7.11
    assert cited("gpt2-large", "webnlg", "unseen", "fine-tuning")[0]["bleu"] == 43.1
    assert cited("gpt2-mini", "e2e", "all", "prefix") is None
    assert cited("gpt2-medium", "dart", "all", "prefix") is None  # other rows are scored here


SMALL = (
    "--task", "e2e", "--rows", "24", "--steps", "2", "--limit-inputs", "3", "--decoding", "greedy", "--seeds", "1",
)  # fmt: skip


def call(monkeypatch, into, *more):
    monkeypatch.setattr(sys, "argv", ["paper", *SMALL, "--into", str(into), *more])
    command.main()


def test_one_command_trains_scores_keeps_and_goes_on(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--methods", "base,prefix")
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    first = [json.loads(line) for line in lines]
    assert [record["method"] for record in first] == ["base", "prefix"]
    assert first[1]["trained"] == 10 * 6 * 2 * 256
    assert first[1]["stored_bytes"] == 4 * first[1]["trained"]
    assert first[1]["updates"] == 2
    assert set(first[1]["scores"]["greedy"]["all"]) >= {"bleu", "ter", "slot_error"}
    assert len(Records(tmp_path).texts(first[1]["key"])["greedy"]) == 3
    call(monkeypatch, tmp_path, "--methods", "base,prefix,hand")
    again = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert again[:2] == first
    assert [record["method"] for record in again[2:]] == ["hand"]
    told = capsys.readouterr()
    assert "2/3 prefix: finished before" in told.err
    assert "| 24 | prefix |" in told.out
    assert "scored on 3 inputs" in told.out


def test_another_decoding_keeps_the_scores_of_the_first(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--methods", "base")
    first = Records(tmp_path).all()
    call(monkeypatch, tmp_path, "--methods", "base", "--decoding", "beam5")
    both = Records(tmp_path).all()
    assert [record["key"] for record in both] == [first[0]["key"]]
    assert set(both[0]["scores"]) == set(Records(tmp_path).texts(both[0]["key"])) == {"greedy", "beam5"}
    assert both[0]["scores"]["greedy"] == first[0]["scores"]["greedy"]
    call(monkeypatch, tmp_path, "--methods", "base")
    assert "1/1 base: finished before" in capsys.readouterr().err


def test_a_model_that_another_process_trains_is_left_to_it(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--methods", "base")
    records = Records(tmp_path)
    with records.claim(records.all()[0]["key"]) as ours:
        assert ours
        with records.claim(records.all()[0]["key"]) as again:
            assert not again
        call(monkeypatch, tmp_path, "--methods", "base", "--again")
    assert "1/1 base: another process is at it" in capsys.readouterr().err
    with records.claim(records.all()[0]["key"]) as ours:
        assert ours


def test_low_data_without_enough_rows_is_refused_before_anything_is_trained(monkeypatch, tmp_path):
    with pytest.raises(SystemExit, match="--rows 500: dart has"):
        call(monkeypatch, tmp_path, "--study", "low-data", "--task", "dart", "--rows", "50,500")
    assert Records(tmp_path).all() == []


def test_a_model_that_fails_is_told_at_the_end_and_the_next_is_tried(monkeypatch, tmp_path, capsys):
    def broken(texts, references):
        raise BrokenPipeError(f"of {len(texts)} texts")

    monkeypatch.setitem(metrics.METRICS, "bleu", broken)
    with pytest.raises(SystemExit, match="2 of 2 models failed"):
        call(monkeypatch, tmp_path, "--methods", "base,hand")
    assert "BrokenPipeError: of 3 texts" in capsys.readouterr().err
    assert Records(tmp_path).all() == []


def test_a_method_that_diverges_is_told_and_the_next_is_trained(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--methods", "fine-tuning,base", "--rate", "1e30", "--decoding", "")
    assert [record["method"] for record in Records(tmp_path).all()] == ["base"]
    assert "1/2 fine-tuning: no model: held-out loss nan" in capsys.readouterr().err


def test_kept_texts_are_scored_again_without_training(monkeypatch, tmp_path):
    call(monkeypatch, tmp_path, "--methods", "base")
    records = Records(tmp_path)
    record = records.all()[0]
    records.replace({**record, "scores": {}})
    call(monkeypatch, tmp_path, "--methods", "base", "--rescore")
    assert Records(tmp_path).all() == [record]


def test_what_has_no_texts_is_said_and_the_others_are_scored_again(monkeypatch, tmp_path, capsys):
    call(monkeypatch, tmp_path, "--methods", "base,hand")
    records = Records(tmp_path)
    base, hand = records.all()
    records.texts_path(base["key"]).unlink()
    old = {name: value for name, value in hand.items() if name != "versions"}
    records.replace({**old, "scores": {"greedy": {"all": {"nist": 0.0}}}})
    call(monkeypatch, tmp_path, "--methods", "base,hand", "--rescore")
    assert records.all() == [base, hand]
    told = capsys.readouterr().err
    assert "not scored again, its texts are gone: e2e base" in told
    assert "scored again e2e hand" in told


def test_kept_texts_are_the_same_bytes_for_the_same_texts(tmp_path):
    records = Records(tmp_path)
    packed = []
    for _ in range(2):
        records.add({"key": "a"}, {"greedy": ["Café."]})
        packed.append(records.texts_path("a").read_bytes())
    assert packed[0] == packed[1]
    assert records.texts("a") == {"greedy": ["Café."]}


def test_a_line_that_was_cut_off_is_passed_over_and_closed(tmp_path):
    records = Records(tmp_path)
    records.add({"key": "a", "method": "base"}, {})
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"key": "b", "met')
    assert records.keys() == {"a"}
    records.add({"key": "c", "method": "prefix"}, {})
    assert records.keys() == {"a", "c"}


def record_of(method, rows=50, seed=0, sample=0, bleu=10.0, study="low-data", base="gpt2-mini", **more):
    return {
        "key": f"{method}{rows}{seed}{sample}{bleu}", "base": base, "study": study, "task": "e2e", "method": method,
        "rows": rows, "sample": sample, "seed": seed, "start": "words", "words": None, "steps": None, "epochs": None,
        "rate": None, "limit_inputs": 7, "training_rows": rows, "held_out_rows": 15, "scored_inputs": 7,
        "settings": {"size": 10}, "updates": 20, "best_update": 20, "seconds": 3.0, "held_out_loss": 2.0,
        "base_loss": 4.0, "trained": 30720, "kept": 30720, "stored_bytes": 122880, "base_parameters": 7098368,
        "scores": {"greedy": {"all": {"bleu": bleu, "slot_error": 50.0}}},
        "missing": {"meteor": "pycocoevalcap not installed; install with `make bench-paper-deps`"},
        "versions": metrics.VERSIONS, **more,
    }  # fmt: skip


def test_the_table_has_means_spreads_and_the_gap_with_its_sign():
    records = [record_of("prefix", seed=seed, bleu=bleu) for seed, bleu in ((0, 12.0), (1, 14.0))]
    records += [record_of("fine-tuning", seed=seed, bleu=bleu) for seed, bleu in ((0, 15.0), (1, 14.0))]
    found = table.report(records)
    assert (
        "| 50 | prefix |  | 2 | 30,720 (0.433 %) | 123 kB | 2.000 ± 0.000 | 13.0 ± 1.4 | 50.0 ± 0.0 |"
        in found
    )
    assert (
        "| 50 | **prefix minus fine-tuning** |  | 2 |  |  | +0.000 ± 0.000 | -1.5 ± 2.1 | +0.0 ± 0.0 |"
        in found
    )
    assert "scored on 7 inputs" in found
    assert "held-out rows 15" in found
    assert "Not scored: METEOR: pycocoevalcap not installed" in found


def test_scores_by_an_earlier_rule_are_in_no_mean_and_said_to_be_left_out():
    scores = {"greedy": {"all": {"bleu": 12.0, "nist": 9.0}}}
    old = record_of("prefix", seed=1, scores=scores, versions={})
    found = table.report([record_of("prefix", scores={"greedy": {"all": {"bleu": 10.0, "nist": 2.0}}}), old])
    assert "| 11.0 ± 1.4 | 2.00 |" in found
    assert "Left out: NIST of 1 models, scored by an earlier rule" in found
    assert "NIST |" not in table.report([old])


def test_rows_drawn_by_another_rule_stand_in_another_table():
    found = table.report([record_of("prefix", draw=2), record_of("prefix", seed=1, bleu=30.0)])
    assert found.count("| 50 | prefix |  | 1 |") == 2
    assert found.count("rows drawn by an earlier rule") == 1


def test_runs_that_held_out_other_rows_are_not_averaged():
    other = record_of("prefix", bleu=30.0, held_out_rows=5)
    assert table.report([record_of("prefix"), other]).count("| 50 | prefix |  | 1 |") == 2


def test_a_later_record_of_the_same_model_keeps_the_earlier_ones_decodings():
    beams = record_of("prefix", scores={"beam5": {"all": {"bleu": 3.0}}})
    assert set(table.newest([record_of("prefix"), beams])[0]["scores"]) == {"greedy", "beam5"}
    retrained = {**beams, "held_out_loss": 1.9}
    assert set(table.newest([record_of("prefix"), retrained])[0]["scores"]) == {"beam5"}


def test_the_start_study_tells_methods_apart():
    runs = [record_of(method, study="init", words="elephant") for method in ("prefix", "prefix-20")]
    assert [table.label(run) for run in runs] == ["prefix: elephant", "prefix-20: elephant"]
    assert len(table.newest(runs)) == 2


def test_rates_stand_in_one_table_for_each_number_of_rows_and_samples_are_averaged():
    def tried(rate, loss, sample=0, rows=100):
        record = record_of("prefix", rows, sample=sample, study="rates", rate=rate, scores={}, missing={})
        return {**record, "settings": {"rate": rate}, "held_out_loss": loss}

    runs = [
        tried(0.1, 2.0),
        tried(0.1, 2.5, 1),
        tried(0.01, 3.0),
        tried(0.01, 3.0, 1),
        tried(0.1, 1.0, rows=500),
    ]
    found = table.report([*runs, tried(0.01, 0.0, sample=2)])  # of which the other rate has none
    assert found.count("**rates: e2e on gpt2-mini**") == 2
    assert "| prefix | 0.01: 3.000, 0.1: **2.250** |" in found
    assert "| prefix | 0.1: **1.000** |" in found
    assert "3 models a rate at most" in found


def test_runs_of_unlike_settings_are_not_averaged():
    other = record_of("prefix", seed=1, bleu=30.0, settings={"size": 20})
    found = table.report([record_of("prefix"), other])
    assert found.count("| 50 | prefix |  | 1 |") == 2


def test_of_one_models_records_the_last_counts():
    runs = [
        record_of("prefix", settings={"size": 10, "rate": rate}, bleu=bleu)
        for rate, bleu in ((0.3, 9.0), (0.1, 12.0))
    ]
    found = table.report(runs)
    assert "| 50 | prefix | 0.1 | 1 |" in found
    assert "| 0.3 |" not in found


def test_the_papers_line_stands_below_ours_on_its_checkpoints():
    scores = {"greedy": {"all": {"bleu_uncased": 10.0}}}
    found = table.report([record_of("prefix", study="main", base="gpt2-medium", scores=scores)])
    assert "| *prefix, Li & Liang 2021, table 1* |" in found
    assert "| 69.7 |" in found
    assert "Li & Liang" not in table.report([record_of("prefix", study="main")])


def test_an_empty_table_says_what_to_run():
    assert "python -m bench.paper" in table.report([])


def test_plots_are_drawn_for_what_was_run_and_are_the_same_bytes_again(tmp_path):
    records = [record_of(method, rows=rows) for method in ("prefix", "fine-tuning") for rows in (50, 100)]
    records += [record_of("base", study="main"), record_of("prefix", study="length", settings={"size": 5})]
    told = plots.draw(records, tmp_path)
    assert told["init"].startswith("left out")
    drawn = sorted(path.name for path in tmp_path.glob("*.svg"))
    assert drawn == [
        "length-gpt2-mini-e2e-50-rows-7-inputs.svg",
        "low-data-gpt2-mini-e2e-7-inputs.svg",
        "main-gpt2-mini-e2e-50-rows-7-inputs.svg",
    ]
    beams = {"beam5": {"all": {"bleu": 99.0}}}
    assert plots.scores(record_of("prefix", scores={**record_of("prefix")["scores"], **beams}))["bleu"] == 10
    assert plots.scores(record_of("prefix", scores=beams)) == {}
    assert plots.scores(record_of("prefix", scores=beams, base="gpt2-medium"))["bleu"] == 99
    first = [(tmp_path / name).read_bytes() for name in drawn]
    plots.draw(records, tmp_path)
    assert [(tmp_path / name).read_bytes() for name in drawn] == first


def test_run_returns_what_the_table_needs(host):
    job = Job("init", "dart", "prefix-3", rows=20, start="uniform", steps=1, limit_inputs=2)
    record, texts = run(host, job)
    assert record["trained"] == 3 * 6 * 2 * 256
    assert len(texts["greedy"]) == 2
    assert table.label(record) == "prefix-3: random, uniform 0 to 1"
    assert record["draw"] == 2
    assert record["versions"] == metrics.VERSIONS
    assert "rows" in table.report([record])


def test_tables_are_written_between_the_marks_of_the_document():
    document = (Path(__file__).resolve().parents[3] / "docs" / "paper.md").read_text()
    found = table.written(document, "| a |")
    assert "<!-- paper: tables -->\n| a |\n<!-- /paper -->" in found
    assert table.written(found, "| b |") == table.written(document, "| b |")
    with pytest.raises(ValueError, match="--write needs both"):
        table.written("# No place", "| a |")


def test_the_command_writes_tables_into_a_document_and_plots_beside_it(monkeypatch, tmp_path):
    Records(tmp_path / "results").add(record_of("prefix", study="main"), {})
    document = tmp_path / "paper.md"
    document.write_text("Before.\n<!-- paper: tables -->\n<!-- /paper -->\nBehind.\n")
    monkeypatch.setattr(
        sys, "argv", ["paper", "--table", "--write", str(document), "--into", str(tmp_path / "results")]
    )
    command.main()
    name = "paper-main-gpt2-mini-e2e-50-rows-7-inputs"
    assert f"![{name}](plots/{name}.svg)\n<!-- /paper -->" in document.read_text()
    assert (tmp_path / "plots" / f"{name}.svg").is_file()
