"""The bench's arithmetic: verdicts, paces, lower bounds and capacity come out of figures as they should."""

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import bound, contest, formats, pace, steps
from bench.process import ContestantError, Process
from bench.service_engine import between
from bench.service_run import capacity, p95
from bench.service_sweep import _promised
from bench.table import Row
from bench.to_loss import both_reach
from bench.workload import SHAPES, uniform
from prefix_engine.testing import tiny_base
from service.cli.bench_load import Ask, Outcome
from trainer_worker.rows import Encoded

MACHINE = bound.Machine(read=27e9, peak={"fp32": 310e9, "int8": 1100e9})


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        (Row("faster", "", "", 8.0, at_least=8), "hit"),
        (Row("faster", "", "", 7.99, at_least=8), "**missed**"),
        (Row("shorter", "", "", 1.1, at_most=1.1), "hit"),
        (Row("shorter", "", "", 1.11, at_most=1.1), "**missed**"),
        (Row("told", "", "", 3.0), "reported"),
        (Row("absent", "", "", None, at_least=8), "not measured"),
        (Row("of nothing", "", "", math.nan, at_most=1.1), "not measured"),
        (Row("endless", "", "", math.inf, at_most=1.1), "**missed**"),
    ],
)
def test_a_verdict_is_what_the_target_makes_of_the_figure(row, verdict):
    assert row.verdict == verdict
    assert row.markdown().endswith(f"| {verdict} |")


@given(
    st.integers(1, 64),
    st.integers(1, 1000),
    st.sampled_from(["fp32", "int8"]),
    st.sampled_from(["fp32", "bf16"]),
)
def test_no_step_is_bounded_below_what_reading_its_bytes_takes(rows, cached, weights, kv):
    shape = SHAPES["124m"]
    seconds = bound.step_s(shape, MACHINE, rows, cached, weights, kv)
    read = bound.matrix_weights(shape) * bound.WEIGHT_BYTES[weights]
    read += rows * cached * bound.kv_values(shape) * bound.KV_BYTES[kv]
    assert seconds >= read / MACHINE.read * 0.999
    assert bound.step_s(shape, MACHINE, rows + 1, cached, weights, kv) > seconds
    assert bound.step_s(shape, MACHINE, rows, cached + 1, weights, kv) > seconds


@given(st.integers(1, 8), st.integers(3, 30), st.floats(0.001, 0.2))
def test_the_pace_of_a_batch_is_the_time_between_its_steps(rows, tokens, step):
    times = [[(place + row) * step for place in range(tokens + 8)] for row in range(rows)]  # one joins a step
    assert pace.step_s(times) == pytest.approx(step)
    assert pace.longest_gap_s(times, 0, times[0][-1]) == pytest.approx(step)


@given(st.integers(2, 40), st.integers(2, 60), st.floats(0.5, 20))
def test_capacity_is_the_rate_while_as_many_are_always_under_way(under_way, tokens, seconds):
    """Slots that begin one after another, each with one request behind the other."""
    outcomes = [
        Outcome(
            Ask("p", (1,), tokens),
            began=(turn + slot / under_way) * seconds,
            seconds=seconds,
            pieces=[(place + 1) / (tokens + 1) * seconds for place in range(tokens + 1)],
        )
        for slot in range(under_way)
        for turn in range(6)
    ]
    assert capacity(outcomes, 7 * seconds) == pytest.approx(under_way / seconds, rel=0.15)


def test_too_few_requests_to_keep_the_service_full_are_counted_whole():
    outcomes = [Outcome(Ask("p", (1,), 2), began=0, seconds=4, pieces=[1.0, 2.0, 4.0]) for _ in range(8)]
    assert capacity(outcomes, 4) == 2


def test_a_prefill_between_two_measured_lengths_lies_between_them():
    known = {20: 0.1, 120: 0.3, 220: 0.5}
    assert between(known, 70) == pytest.approx(0.2)
    assert between(known, 220) == pytest.approx(0.5)
    assert between(known, 440) == pytest.approx(1.0)


def test_the_row_of_the_first_token_tells_how_many_were_refused():
    asks = [Ask("p", (1,) * length, 2) for length in (300, 300, 300, 20)]
    outcomes = [Outcome(ask, began=0, seconds=4, pieces=[1.0, 2.0, 4.0]) for ask in asks]
    outcomes[1].error, outcomes[1].pieces = "503 overloaded", []
    prefills = {20: 0.1, 220: 0.5, 420: 0.9}
    row = _promised(outcomes, prefills, 200)
    assert "2 of 3 requests answered" in row.ours
    assert (row.measured, row.verdict) == (math.inf, "**missed**")
    outcomes[1] = outcomes[0]
    assert _promised(outcomes, prefills, 200).measured == pytest.approx(1.0 / 0.66)
    assert _promised(outcomes, prefills, 400).verdict == "not measured"
    for outcome in outcomes:
        outcome.error = "503 overloaded"
    assert _promised(outcomes, prefills, 200).verdict == "**missed**"


def test_a_refusal_is_longer_than_any_answer_and_five_of_a_hundred_are_forgiven():
    assert p95([1.0] * 95, 5) == 1.0
    assert p95([1.0] * 94, 6) == math.inf
    assert p95([3.0, 1.0], 0) == 3.0
    assert math.isnan(p95([], 0))


@given(
    st.integers(1, 64),
    st.integers(0, 600),
    st.sampled_from(["fp32", "int8"]),
    st.sampled_from(["fp32", "bf16"]),
)
def test_what_goes_on_at_once_takes_no_longer_than_its_phases_in_turn_and_no_less_than_the_longest(
    rows, cached, weights, kv
):
    phases = bound.phases(SHAPES["124m"], rows, cached, weights, kv)
    at_once = bound.overlapped_s(phases, MACHINE)
    in_turn = bound.step_s(SHAPES["124m"], MACHINE, rows, cached, weights, kv)
    assert max(phase.seconds(MACHINE) for phase in phases) <= at_once * (1 + 1e-12)
    assert at_once <= in_turn * (1 + 1e-12)


def test_a_bound_that_a_step_of_the_same_run_breaks_gives_no_verdict():
    step = {"rows": 1, "share": 0.97, "seconds": 0.0143, "bound": 0.0138, "overlapped": 0.0137}
    whole = {"fp32": {"1": {"step": 0.0141}}}
    assert not steps._broken({"1": step}, whole)
    for broken in (
        steps._broken({"1": step}, {"fp32": {"1": {"step": 0.0104}}}),
        steps._broken({"1": step | {"seconds": 0.013}}, {}),
    ):
        assert broken
        (row,) = steps._rows({"1": step}, MACHINE, broken)
        assert (row.verdict, "slower hour" in row.against) == ("not measured", True)
    assert steps._rows({"1": step}, MACHINE, set())[0].verdict == "hit"
    others = {"8": step | {"rows": 8}, "64": step | {"rows": 64, "share": 0.5}}  # flattered, both
    hit, missed = steps._rows(others, MACHINE, {"1"})
    assert (hit.verdict, missed.verdict) == ("not measured", "**missed**")


def test_the_best_peer_is_named_only_where_all_are_there():
    speeds = {contest.ENGINE: [300.0], **{peer: [200.0] for peer in contest.FP32_PEERS}}
    assert contest._w1(speeds, {})[1].verdict == "hit"
    del speeds[contest.VLLM]
    assert contest._w1(speeds, {contest.VLLM: "not installed"})[1].verdict == "not measured"


def test_a_contestant_that_does_not_answer_is_left_out_again_and_again():
    with Process("silent", Path(sys.executable), "engine", 1) as silent:
        for _ in range(2):
            with pytest.raises(ContestantError, match="no answer"):
                silent.ask("memory", timeout_s=0.0)


def test_a_row_that_no_format_can_score_is_not_left_out_of_its_loss():
    base, prompt = tiny_base(positions=32), tuple(range(20))
    rows = [Encoded(prompt, 2), Encoded(prompt * 2, 2)]
    assert formats.loss(base, "fp32", "fp32", None, rows[:1])[1] == 18
    with pytest.raises(RuntimeError, match="context"):
        formats.loss(base, "fp32", "fp32", None, rows)


@pytest.mark.parametrize(
    ("peer", "told"), [(contest.VLLM, True), (contest.CT2, True), (contest.STATIC, False)]
)
def test_a_row_tells_which_peers_serve_without_prefixes(peer, told):
    row = contest._against("faster", {contest.ENGINE: [3.0], peer: [2.0]}, {}, contest.ENGINE, peer, 1.3)
    assert row.measured == 1.5
    assert ("without prefixes" in row.against) == told


def test_a_row_against_a_contestant_with_other_texts_says_so():
    equal = {contest.VLLM: "31 of 32 texts equal the engine's, 0 more up to a near-tie, 1 DIFFER"}
    speeds = {contest.ENGINE: [3.0], contest.VLLM: [2.0], contest.STATIC: [1.0]}
    against, beside = (
        contest._marked(contest._against("faster", speeds, {}, contest.ENGINE, peer, 1.3), equal).against
        for peer in (contest.VLLM, contest.STATIC)
    )
    assert against.endswith("1 DIFFER")
    assert "DIFFER" not in beside


@pytest.mark.parametrize(("margin", "differ"), [(1e-4, 0), (0.1, 1)])
def test_texts_that_part_at_a_near_tie_are_the_same_work(margin, differ):
    class Engine:
        def ask(self, what, **more):
            return {"margins": [[1.0, margin], [1.0, 1.0]]}

    said = contest._compared(Engine(), uniform(2, 4, 2, 10), [[1, 2], [3, 4]], [[1, 9], [3, 4]])
    assert said.startswith("1 of 2 texts equal the engine's, ")
    row = contest._against(
        "faster", {contest.ENGINE: [3.0], contest.STATIC: [2.0]}, {}, contest.ENGINE, contest.STATIC, 1.3
    )
    marked = contest._marked(row, {contest.STATIC: said})
    assert (marked.measured is None) == bool(differ)


falling = st.lists(st.floats(0, 9), min_size=1, max_size=30).map(
    lambda losses: [(5 * i, 2.0 * i, 3.0 * i, loss) for i, loss in enumerate(losses)]
)


@given(falling, falling)
def test_the_loss_that_both_reach_is_the_worse_of_the_two_bests(ours, theirs):
    met = both_reach(ours, theirs)
    assert met.loss in {point[3] for point in (*ours, *theirs)}
    for curve, (seconds, processor) in ((ours, met.ours), (theirs, met.theirs)):
        assert processor == seconds * 3 / 2
        assert min(point[3] for point in curve) <= met.loss
        assert next(point[1] for point in curve if point[3] <= met.loss) == seconds
    assert met.loss in {min(point[3] for point in curve) for curve in (ours, theirs)}


@given(falling, falling)
def test_a_part_of_the_way_to_that_loss_is_reached_no_later(ours, theirs):
    start = 10.0  # above every curve
    whole, part = both_reach(ours, theirs), both_reach(ours, theirs, start, 0.9)
    assert part.loss == pytest.approx(start + 0.9 * (whole.loss - start))
    assert part.ours[0] <= whole.ours[0]
    assert part.theirs[0] <= whole.theirs[0]
