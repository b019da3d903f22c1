"""The load, what it asks for and what its times come to, against a wire that answers as scripted."""

import itertools
import json
import re
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire import piece, sse

from service.cli import bench_asks, bench_load, bench_report
from service.cli.bench_load import Ask, Outcome
from service.cli.terminal import CommandError

COMPLETIONS = ("POST", "/v1/completions")
END = {"choices": [], "usage": {"completion_tokens": 3}}
ANSWER = sse(piece(0, "a"), piece(0, "b"), piece(0, ""), piece(0, "", "length"), END)


def drawn(count, **changes):
    settings = {"prompt": (2, 9), "output": (1, 5)} | changes
    return list(itertools.islice(bench_asks.draw(["a", "b", "c"], **settings), count))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.floats(0, 100))
def test_a_percentile_lies_between_the_values_beside_it(values, point):
    found = bench_report.percentile(values, point)
    below = sum(value < found - 1e-6 for value in values)
    above = sum(value > found + 1e-6 for value in values)
    assert below <= (len(values) - 1) * point / 100 + 1
    assert above <= (len(values) - 1) * (1 - point / 100) + 1
    assert min(values) <= found <= max(values)


def test_percentiles_of_a_hundred_and_one_values_are_the_values():
    assert [bench_report.percentile(range(101), point) for point in (0, 50, 95, 100)] == [0, 50, 95, 100]


@pytest.mark.parametrize("text", ["", "0", "5-2", "a", "1-", "-3", "1-2-3"])
def test_what_is_no_range_of_lengths_is_a_sentence(text):
    with pytest.raises(CommandError, match="no range of lengths"):
        bench_asks.lengths(text)


def test_ranges_of_lengths_are_read_and_kept():
    assert bench_asks.lengths("20-400") == (20, 400)
    assert bench_asks.lengths("7") == (7, 7)
    asks = drawn(500)
    assert {len(ask.prompt) for ask in asks} == set(range(2, 10))
    assert {ask.output for ask in asks} == set(range(1, 6))
    assert all(0 <= token < 256 for ask in asks for token in ask.prompt)


def test_the_same_seed_asks_the_same_and_another_does_not():
    assert drawn(20, seed=3, rate=2.0) == drawn(20, seed=3, rate=2.0)
    assert drawn(20, seed=3) != drawn(20, seed=4)


def test_arrivals_are_poisson_of_the_rate_that_was_asked_for():
    due = [ask.due for ask in drawn(4000, rate=5.0)]
    between = [b - a for a, b in itertools.pairwise(due)]
    assert statistics.fmean(between) == pytest.approx(0.2, rel=0.1)
    assert statistics.stdev(between) == pytest.approx(0.2, rel=0.1)


def test_popularity_is_zipf():
    models = [ask.model for ask in drawn(6000, zipf=1.0)]
    assert models.count("a") / models.count("c") == pytest.approx(3, rel=0.2)
    alike = [ask.model for ask in drawn(6000, zipf=0.0)]
    assert alike.count("a") / alike.count("c") == pytest.approx(1, rel=0.2)


def test_the_piece_that_tells_the_end_is_no_token_between_others():
    outcome = Outcome(Ask("m", (1,), 3), 0.0, pieces=[0.5, 0.6, 0.8, 0.8001], tokens=3)
    assert outcome.first == 0.5
    assert outcome.gaps == pytest.approx([0.1, 0.2])
    assert outcome.per_token == pytest.approx(0.15, rel=0.01)


def test_an_answer_of_one_token_has_no_time_between_tokens():
    assert Outcome(Ask("m", (1,), 1), 0.0, pieces=[0.5, 0.5], tokens=1).per_token is None


def test_a_load_counts_answers_refusals_and_broken_streams(wire):
    wire.answers[COMPLETIONS] = [
        (200, ANSWER),
        (429, {"error": {"code": "queue_full"}}),
        (503, b"<html>"),
        (200, sse(piece(0, "a"), {"error": {"code": "deadline_exceeded"}}, done=False)),
        (200, sse(piece(0, "a"), done=False)),
        (200, b"data: {not json\n\n"),
        (200, ANSWER),
    ]
    outcomes, seconds = bench_load.run(wire.url, iter(drawn(7, api_key="k")), concurrency=1)
    found = bench_report.summary(outcomes, seconds)
    assert found["requests"] == 7
    assert found["answered"] == 2
    assert found["completion_tokens"] == 6
    assert found["errors"] == {
        "429 queue_full": 1,
        "503": 1,
        "200 deadline_exceeded": 1,
        "the stream broke off": 1,
        "JSONDecodeError": 1,
    }
    assert found["first_token"]["count"] == 2
    sent = json.loads(wire.requests[0][3])
    assert sent["stream"] is True
    assert wire.requests[0][2]["Authorization"] == "Bearer k"


def test_a_service_that_is_away_is_an_error_of_each_request():
    outcomes, _ = bench_load.run("http://127.0.0.1:9", iter(drawn(3)))
    assert [outcome.error for outcome in outcomes] == ["ConnectError"] * 3


def test_times_count_from_when_a_request_was_due(wire):
    wire.answers[COMPLETIONS] = (200, ANSWER)
    asks = [Ask("m", (1,), 3, due=0.0), Ask("m", (1,), 3, due=0.3), Ask("m", (1,), 3, due=9.0)]
    outcomes, seconds = bench_load.run(wire.url, iter(asks), seconds=1.0)
    assert [outcome.began for outcome in outcomes] == [0.0, 0.3]
    assert 0.3 < seconds < 5
    assert all(outcome.seconds >= outcome.lag for outcome in outcomes)


def test_no_more_are_under_way_than_was_said(wire):
    wire.answers[COMPLETIONS] = (200, ANSWER)
    outcomes, _ = bench_load.run(wire.url, iter(drawn(12)), concurrency=2)
    spans = [(o.began, o.began + o.seconds) for o in outcomes]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert most <= 2


def test_who_is_refused_waits_as_told_before_the_next_request(wire):
    refusal = {"error": {"code": "overloaded"}}
    wire.answers[COMPLETIONS] = [(503, refusal, {"Retry-After": "1"}), (200, ANSWER)]
    outcomes, _ = bench_load.run(wire.url, iter(drawn(2)), concurrency=1)
    assert [outcome.error for outcome in outcomes] == ["503 overloaded", None]
    assert outcomes[1].began - outcomes[0].began >= 1.0


def test_the_verb_shows_a_table_and_the_errors(wire, command):
    wire.answers["GET", "/v1/models"] = (200, {"data": [{"id": "base"}, {"id": "alice:voice"}]})
    wire.answers[COMPLETIONS] = [(429, {"error": {"code": "queue_full"}}), (200, ANSWER)]
    shown = command("bench", "alice:voice", "--requests", "5", "--concurrency", "1").stdout
    for title in bench_report.SHOWN.values():
        assert title in shown
    assert re.search(r"4 of 5 requests answered in .*, [\d.]+ tokens/s", shown)
    assert "1 x 429 queue_full" in shown
    asked = {json.loads(body)["model"] for method, _, _, body in wire.requests if method == "POST"}
    assert asked == {"alice:voice"}


def test_without_a_model_the_base_is_asked_and_json_is_one_object(wire, command):
    wire.answers["GET", "/v1/models"] = (200, {"data": [{"id": "base"}, {"id": "alice:voice"}]})
    wire.answers[COMPLETIONS] = (200, ANSWER)
    found = json.loads(command("bench", "--requests", "3", "--json").stdout)
    assert found["answered"] == 3
    assert {"p50", "p90", "p95", "p99", "mean", "max", "count"} == set(found["first_token"])
    assert json.loads(wire.requests[-1][3])["model"] == "base"


def test_a_load_of_which_nothing_is_answered_fails(wire, command):
    wire.answers["GET", "/v1/models"] = (200, {"data": [{"id": "base"}]})
    wire.answers[COMPLETIONS] = (503, {"error": {"code": "overloaded"}})
    with pytest.raises(CommandError, match="no request was answered"):
        command("bench", "--requests", "2")


def test_a_rate_and_a_number_under_way_exclude_each_other(command):
    with pytest.raises(CommandError, match="--rate"):
        command("bench", "--rate", "2", "--concurrency", "2")
