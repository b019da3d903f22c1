"""The bench's plots: the same figures give the same bytes, axes say what they are, nothing is made up."""

from xml.etree import ElementTree as ET

import pytest

from bench import report, results
from bench.plot_names import PLOTS

pytest.importorskip("matplotlib", reason="make setup brings matplotlib")
from bench import plots

LOADS = (0.1, 0.7, 3.0)


def times(middle):
    return {"p50": middle, "p95": 3 * middle}


SWEEP = {
    "saturated": {"service": [205.0, 215.0, 210.0], "engine": [230.0, 225.0, 228.0]},
    "sweep": {
        "points": [
            {"load": x, "goodput": 200 * min(x, 1), "first_token": times(x), "between_tokens": times(0.05)}
            for x in LOADS
        ]
    },
}
MIXING = {
    "by_count": {"1": 0.060, "2": 0.0601, "4": 0.0603},
    "by_length": {"0": {"step": 0.06, "bound": 0.04}, "200": {"step": 0.08, "bound": 0.055}},
}
REGISTRY = {"milliseconds": {"100": {"p50": [1.0], "p99": [2.0]}, "100000": {"p50": [1.1], "p99": [2.1]}}}
CONTEST = {"W1": {"tokens_s": {"engine fp32": [311.0, 313.0], "PEFT one by one": [38.0], "vLLM fp32": []}}}
CURVE = [[0, 0.5, 0.9, 4.0], [5, 2.0, 3.9, 2.5], [10, 30.0, 60.0, 2.4]]
TO_LOSS = {"quiz": {"curves": {"ours": [CURVE], "PEFT, short": [CURVE], "PEFT": [CURVE]}, "base_loss": 3.0}}
MEASURED = {
    "contest": CONTEST, "mixing": MIXING, "service-sweep": SWEEP, "service-registry": REGISTRY,
    "training-to-loss": TO_LOSS,
}  # fmt: skip


def measured(folder, *sections):
    for name in sections:
        results.keep(folder, name, [], MEASURED[name], 1.0)
    return folder


def words(path):
    root = ET.fromstring(path.read_bytes())
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    return [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plots")
    plots.draw(measured(folder, *MEASURED), folder / "drawn")
    return folder / "drawn"


def test_the_same_figures_give_the_same_bytes(drawn, tmp_path):
    plots.draw(measured(tmp_path, *MEASURED), tmp_path)
    for name in PLOTS:
        assert (tmp_path / f"{name}.svg").read_bytes() == (drawn / f"{name}.svg").read_bytes()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("contest", {"generated tokens/s, median of the rounds", "engine fp32", "312", "38"}),
        ("length", {"m, positions of each row's prefix", "ms per token of a row", "lower bound of this machine"}),
        ("prefixes", {"distinct prefixes in it", "prefixes registered", "100,000", "resolve and admit, p99"}),
        ("throughput", {"load, multiples of capacity", "tokens/s, of whole answers", "bare engine, the same requests"}),
        ("to_loss", {"quiz", "seconds of training", "held-out loss, nats a token", "ours", "PEFT", "the base alone"}),
        ("latency", {"time to first token", "time between tokens", "ms", "p50", "p95"}),
    ],
)  # fmt: skip
def test_every_plot_is_an_svg_with_titles_units_and_a_legend(drawn, name, told):
    assert told <= set(words(drawn / f"{name}.svg"))


def test_who_did_not_take_part_has_no_bar(drawn):
    assert "vLLM fp32" not in words(drawn / "contest.svg")


def test_a_plot_that_was_not_measured_is_left_out_and_says_what_is_missing(tmp_path):
    told = plots.draw(measured(tmp_path, "mixing", "contest"), tmp_path / "drawn")
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["contest.svg", "length.svg"]
    assert told["latency"] == "left out: service-sweep not measured"
    assert told["prefixes"] == "left out: service-registry not measured"


def test_documents_show_the_plots_that_exist(tmp_path):
    plots.draw(measured(tmp_path, "mixing"), tmp_path / "docs" / "plots")
    shown = report.images(tmp_path / "docs" / "plots", tmp_path / "docs")
    assert shown == f"![{PLOTS['length']}](plots/length.svg)\n"
    document = "<!-- bench: plots -->\n<!-- /bench -->"
    assert shown in report.written(document, tmp_path, shown)
