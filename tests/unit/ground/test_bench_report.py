"""The bench's report: rows keep their verdicts, what was not measured says so, documents get their tables."""

import math
import os
import subprocess
from argparse import ArgumentTypeError

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report, results
from bench.process import ROOT
from bench.referee import Referee
from bench.sections import Planned, measure_all
from bench.table import HEAD, Row

FAST = Row("W1 fp32 against PEFT one by one", "310 tok/s", "PEFT one by one 38 tok/s", 8.1, at_least=8)
SLOW = Row("others' time between tokens", "70 ms", "60 ms", 1.17, at_most=1.1)


def kept(folder, **sections):
    for name, rows in sections.items():
        results.keep(folder, name.replace("_", "-"), rows, {"figures": [1]}, 12.5)


def test_a_table_holds_the_rows_of_both_benches_in_the_order_of_the_sections(tmp_path):
    kept(tmp_path, service_cold=[SLOW], contest=[FAST])
    lines = report.table(tmp_path, ("contest", "service-cold")).splitlines()
    assert lines[:2] == HEAD.splitlines()
    assert lines[2] == FAST.markdown()
    assert lines[2].endswith("| hit |")
    assert lines[3] == SLOW.markdown()
    assert lines[3].endswith("| **missed** |")


def test_a_section_that_was_not_measured_says_so_and_by_which_command_it_would_be(tmp_path):
    kept(tmp_path, contest=[FAST])
    text = report.table(tmp_path)
    for name in results.COMMANDS:
        assert (f"| section {name} |" in text) == (name != "contest")
    assert "`python -m bench.service --rows cold` measures it | not measured |" in text
    assert "`python -m bench --rows steps` measures it | not measured |" in text


def test_a_section_measured_again_replaces_its_rows_and_no_others(tmp_path):
    kept(tmp_path, contest=[SLOW], memory=[SLOW])
    kept(tmp_path, contest=[FAST])
    assert results.read(tmp_path, "contest").rows == [FAST.markdown()]
    assert results.read(tmp_path, "memory").rows == [SLOW.markdown()]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["contest.json", "memory.json"]


def test_a_table_says_on_which_machine_and_of_which_commit_its_sections_ran(tmp_path):
    kept(tmp_path, contest=[FAST], memory=[SLOW])
    (tmp_path / "steps.json").write_text('{"rows": [], "raw": {}, "seconds": 1.0}')
    text = report.table(tmp_path, ("contest", "memory", "steps"))
    assert f"{results.machine()}, {results.commit()}: contest, memory." in text
    assert "machine not noted, commit not noted: steps." in text


def test_of_a_run_that_ends_early_no_older_figure_is_left(tmp_path):
    kept(tmp_path, steps=[SLOW], memory=[SLOW], contest=[SLOW])

    def ends():
        raise KeyboardInterrupt

    referee = Referee(math.inf)
    planned = {name: Planned(name, ends, referee) for name in ("steps", "memory")}
    with pytest.raises(KeyboardInterrupt):
        measure_all(planned, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["contest.json"]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository of one file, as if the bench lay in it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    someone = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}

    def git(*arguments):
        done = subprocess.run(
            ["git", *arguments],
            cwd=tmp_path,
            env=kept | someone,
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    (tmp_path / "code.py").write_text("1")
    git("init")
    git("add", ".")
    git("commit", "-m", "one", "--no-gpg-sign")
    monkeypatch.setattr(results, "ROOT", tmp_path)
    results.commit.cache_clear()
    yield git
    results.commit.cache_clear()


def test_results_name_the_commit_and_say_whether_files_differ_from_it(repository, tmp_path):
    name = repository("rev-parse", "HEAD")[:12]
    assert results.commit() == f"commit {name}"
    (tmp_path / "more.py").write_text("2")
    assert results.commit() == f"commit {name}", "it is that of the code when the run began"
    results.commit.cache_clear()
    assert results.commit() == f"commit {name} with changes"


def test_results_do_without_a_commit(repository, tmp_path, monkeypatch):
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(results, "ROOT", tmp_path / "unpacked")
    assert results.commit() == "commit not noted", "the repository around it is another's"
    results.commit.cache_clear()
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "unpacked"))
    assert results.commit() == "commit not noted"


def test_documents_get_their_tables_where_they_ask_for_them_and_stay_as_they_are_elsewhere(tmp_path):
    kept(tmp_path, contest=[FAST], memory=[SLOW])
    document = (
        "# Speed\n<!-- bench: contest -->\nof last year\n<!-- /bench -->\n"
        "between\n<!-- bench: all -->\n<!-- /bench -->\n"
    )
    new = report.written(document, tmp_path)
    first, between, second = new.partition("\nbetween\n")
    assert "of last year" not in new
    assert FAST.markdown() in first
    assert SLOW.markdown() not in first
    assert between
    assert SLOW.markdown() in second
    assert report.written(new, tmp_path) == new


def test_a_document_without_a_place_or_with_an_unknown_section_is_refused(tmp_path):
    with pytest.raises(ValueError, match="bench: all"):
        report.written("# Speed\n", tmp_path)
    with pytest.raises(ArgumentTypeError, match="no section speed"):
        report.written("<!-- bench: speed -->\n<!-- /bench -->", tmp_path)


@given(st.lists(st.sampled_from([*results.COMMANDS, "speed", ""])))
def test_rows_are_chosen_by_names_that_exist(chosen):
    known = tuple(results.COMMANDS)
    if "speed" in chosen:
        with pytest.raises(ArgumentTypeError, match="no section speed"):
            results.names(",".join(chosen), known)
    else:
        assert results.names(",".join(chosen), known) == tuple(name for name in chosen if name)


@pytest.mark.parametrize("document", ["README.md", "docs/performance.md"])
def test_the_documents_have_places_for_tables_that_can_be_filled(document, tmp_path):
    kept(tmp_path, contest=[FAST])
    assert FAST.markdown() in report.written((ROOT / document).read_text(), tmp_path)
