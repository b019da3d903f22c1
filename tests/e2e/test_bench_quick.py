"""Both benches from end to end on a tiny model: every promised row comes with a verdict, and the plots are drawn.

What the rows say is not looked at: --quick figures mean nothing. On a machine so busy that nothing was answered in time, or
a step beat its bound, those rows say so.
"""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from xml.etree import ElementTree as ET

import pytest

from bench import results
from bench.plot_names import PLOTS
from bench.process import ROOT

PATIENCE_S = 600
VERDICTS = {"hit", "**missed**", "reported", "not measured"}
ENGINE_ROWS = [
    r"W1 fp32 against PEFT one by one",
    r"W1 fp32 against the best fp32 peer",
    r"W1 int8 against CTranslate2 int8",
    r"W1 int8 with bf16 KV against the same",
    r"W2 fp32 against vLLM on CPU",
    r"W2 fp32 against the static batch",
    r"W2 int8 against CTranslate2 int8",
    r"W2 int8 with bf16 KV against the same",
    r"\d+ distinct prefixes against one shared, m=10, shared reads off",
    r"the same, decode steps alone",
    r"\d+ distinct prefixes against none with the same cached length, decode steps",
    *(rf"time per token at m={m} against m=0, batch \d+" for m in (10, 50, 200, 512)),
    r"time per token, \d+ rows, by the number of distinct prefixes among them, m=10",
    r"reading a shared prefix's keys once, m=200, batch \d+, decode steps",
    r"step against the lower bound, fp32, batch \d+",
    r"step against the lower bound, int8, batch \d+, stretch",
    r"step against the lower bound, int8, KV bf16, batch \d+, stretch",
    r"scheduler, greedy sampling without argmax, Python: share of a fp32 step, batch \d+",
    r"scheduler, greedy sampling without argmax, Python: of a fp32 step, batch \d+",
    r"scheduler, sampling at temperature 1 and top_p 0\.9, Python: share of a fp32 step, batch \d+",
    r"where a decode step's time goes, (fp32|int8|int8, KV bf16), batch \d+",
    r"prompts of \d+ to \d+ tokens against \d+ of the mean, whole run",
    r"prompts of \d+ to \d+ tokens against \d+ of the mean, decode steps",
    r"longest gap between tokens of \d+ streams while a prompt of \d+ arrives",
    r"memory above an import-only process after W1, fp32, against its parts",
    r"memory above an import-only process after W1, int8, KV bf16, against its parts",
]
SERVICE_ROWS = [
    r"W3 saturated: service over HTTP against the bare engine",
    r"W3 at [\d.]+ times the capacity",
    r"p95 time to first token at 0\.7 load, prompts of \d+ tokens and more",
    r"fair share: light tenants' p95 time to first token beside \d+ streams of one tenant",
    r"fair share: light tenants' p95 time per token beside \d+ streams of one tenant",
    r"cold prefix \(m=10, bytes on disk\): added to the time to first token",
    r"others' time between tokens while \d+ cold prefixes load",
    r"p95 time between tokens of \d+ streams with training beside them, worker: priority alone",
    r"p95 time between tokens of \d+ streams with training beside them, worker: default",
    r"resolve and admit, p99, [\d,]+ registered prefixes against [\d,]+",
    r"memory of the process, [\d,]+ registered prefixes against [\d,]+",
]

TRAINING_ROWS = [
    r"training step, \d+ rows of \d+ tokens, MLP, against PEFT's",
    r"highest memory above the base, \d+ rows of \d+ tokens, MLP, against PEFT's",
    r"jobs trained together against one after another, one row of 32 tokens, the number that gains most \(.*\)",
    r"wall time to the same held-out loss, \w+, against PEFT's",
]


def ran(module, *arguments):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFIX_")}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, "--quick"],
        cwd=ROOT,
        env=kept | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def verdicts(text):
    """What each row of the report was about, and its verdict; the sweep has a table of its own."""
    lines = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line[:2] == "| "
    ]
    return {cells[0]: cells[-1] for cells in lines if not re.fullmatch(r"what|load|[\d.]+", cells[0])}


def missing(promised, table):
    return [row for row in promised if not any(re.fullmatch(row, what) for what in table)]


PARTS = [
    ("bench", "contest,mixing"),
    ("bench", "steps,streams,memory"),
    ("bench.service", "sweep,fair"),
    ("bench.service", "cold,beside,registry"),
    ("bench.training", "steps"),
    ("bench.training", "to-loss"),
]


@pytest.fixture(scope="module")
def folder():
    """Of the quick results, with none that an earlier run left."""
    shutil.rmtree(results.folder(quick=True))
    return results.folder(quick=True)


@pytest.fixture(scope="module")
def said(folder):
    """What each part of the benches printed; each runs once."""
    peers = {"bench": ("--peers", "none")}
    return cache(
        lambda module, rows: ran(module, *(("--rows", rows) if rows else ()), *peers.get(module, ()))
    )


@pytest.mark.slow
@pytest.mark.parametrize(("module", "rows"), PARTS)
def test_every_row_has_a_verdict_and_only_peers_are_not_measured(said, module, rows):
    text = said(module, rows)
    table = verdicts(text)
    unmeasured = {what for what, verdict in table.items() if verdict == "not measured"}
    timed = {what for what in table if re.match("fair share|p95 time|step against", what)}
    assert set(table.values()) <= VERDICTS
    assert unmeasured - timed == {what for what in table if re.match("W[12] ", what)}
    assert "no figure; what was said above" not in text
    assert "figures mean nothing" in text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "promised"),
    [("bench", ENGINE_ROWS), ("bench.service", SERVICE_ROWS), ("bench.training", TRAINING_ROWS)],
)
def test_every_promised_row_is_there(said, module, promised):
    table = {}
    for part in PARTS:
        table |= verdicts(said(*part)) if part[0] == module else {}
    assert not missing(promised, table)


@pytest.mark.slow
def test_one_table_holds_what_both_left_and_no_section_is_missing(said):
    for part in PARTS:
        said(*part)
    table = verdicts(ran("bench.report"))
    assert not missing(ENGINE_ROWS + SERVICE_ROWS + TRAINING_ROWS, table)
    assert set(table.values()) <= VERDICTS
    assert not [what for what in table if what.startswith("section ")]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("matplotlib") is None, reason="make setup brings matplotlib")
def test_all_plots_are_drawn_from_what_both_left(said, folder):
    for part in PARTS:
        said(*part)
    ran("bench.plots")
    for name in PLOTS:
        root = ET.fromstring((folder / "plots" / f"{name}.svg").read_bytes())
        assert root.tag.endswith("}svg")
        assert [word for word in root.iter() if word.tag.endswith("}text")]
