"""What is shown of jobs, streams and texts."""

import io
import itertools
import threading

import pytest
from rich.console import Console

from service.cli.connection import Connection, Refused
from service.cli.datasets import read_file
from service.cli.demo_answers import Stream, ask_together
from service.cli.demo_table import Row, table
from service.cli.demo_voices import CARRIED, VOICES, questions, training_file
from service.cli.jobs import verdict
from service.cli.processes import address, greeting
from service.cli.progress import JobView, Watched, line_of, patient, view_of, watch
from service.cli.terminal import CommandError, clean, duration


def test_control_characters_of_a_model_are_shown_not_obeyed():
    assert clean("a\x1b[2Jb\r\x07\u202e\n\tc") == "a�[2Jb���\n\tc"


@pytest.mark.parametrize(("seconds", "shown"), [(None, "-:--"), (0, "0:00"), (59.6, "1:00"), (3725, "62:05")])
def test_durations(seconds, shown):
    assert duration(seconds) == shown


def test_a_job_without_progress_yet_is_shown():
    assert line_of(view_of("alice:voice", {"status": "queued", "progress": None})) == (
        "alice:voice          queued"
    )


def test_a_job_that_lost_the_gate_says_so():
    job = {
        "status": "succeeded",
        "fine_tuned_model": "a:b@2",
        "result": {"promoted": False, "base_loss": 2.0, "held_out_loss": 2.25},
    }
    assert verdict(job) == "a:b@2 was not promoted, see the job's events; held-out loss 2.000 -> 2.250"


class Jobs:
    """Answers of three jobs that run one after the other."""

    def __init__(self):
        self.turn = itertools.count()

    def get(self, path):
        turn, job = next(self.turn) // 3, int(path[-1])
        status = "queued" if turn < job else "running" if turn == job else "succeeded"
        progress = {"update": turn, "updates": 9, "train_loss": 2.0, "seconds_left": 5}
        return {"id": path, "status": status, "progress": progress}


@pytest.mark.parametrize("terminal", [True, False])
def test_three_jobs_are_watched_to_the_end_of_the_last(terminal):
    jobs, written = Jobs(), io.StringIO()
    console = Console(file=written, force_terminal=terminal, width=120)
    watched = [Watched(f"user{n}:voice", str(n), jobs) for n in range(3)]
    ended = watch(watched, console, poll_seconds=0.0)
    assert [job["status"] for job in ended] == ["succeeded"] * 3
    for n in range(3):
        assert f"user{n}:voice" in written.getvalue()


def test_a_watch_ends_when_its_check_fails():
    def check():
        raise CommandError("the worker ended by itself")

    with pytest.raises(CommandError, match="ended by itself"):
        watch([Watched("a", "0", Jobs())], Console(file=io.StringIO()), check)


def test_a_service_that_restarts_is_waited_for(wire):
    wire.answers["GET", "/x"] = [(503, {"error": {"message": "draining"}}), (200, {"ok": True})]
    with Connection(wire.url, None) as connection:
        assert patient(lambda: connection.get("/x")) == {"ok": True}


def test_a_lasting_refusal_is_not_asked_again(wire):
    wire.answers["GET", "/x"] = (404, {"error": {"message": "gone"}})
    with Connection(wire.url, None) as connection, pytest.raises(Refused):
        patient(lambda: connection.get("/x"))
    assert len(wire.requests) == 1


class Slow:
    """A connection whose streams overlap by force: no stream ends before all have begun."""

    def __init__(self, parties):
        self.all_began = threading.Barrier(parties)

    def stream(self, body):
        yield {"choices": [{"index": 0, "text": body["prompt"], "finish_reason": None}]}
        self.all_began.wait(120)
        yield {"choices": [{"index": 0, "text": "!", "finish_reason": "stop"}]}


def test_streams_that_ran_at_the_same_moment_are_counted():
    connection, written = Slow(4), io.StringIO()
    streams = [Stream("m", f"p{n}", 8, connection) for n in range(4)]
    assert ask_together(streams, Console(file=written, width=120)) == 4
    assert [stream.text for stream in streams] == ["p0!", "p1!", "p2!", "p3!"]
    assert written.getvalue().count("2 pieces") == 4


def test_a_failed_stream_fails_the_demo():
    class Broken:
        def stream(self, body):
            yield {"choices": [{"index": 0, "text": body["prompt"], "finish_reason": None}]}
            raise CommandError("no token")

    with pytest.raises(CommandError, match="no token"):
        ask_together([Stream("m", "p", 8, Broken())], Console(file=io.StringIO()))


def test_the_table_shows_the_four_texts_and_both_measures():
    written = io.StringIO()
    row = Row("the prompt", "base says", "prefix says [bold]", "a person wrote")
    Console(file=written, width=140).print(table("bob:quiz", "gpt2-mini", [row], 4.0, 3.0))
    shown = written.getvalue()
    for text in ("the prompt", "base says", "prefix says [bold]", "a person wrote"):
        assert text in shown
    assert "held-out loss 4.000 -> 3.000" in shown
    assert "perplexity 54.6 -> 20.1" in shown


@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.user)
def test_the_demo_asks_what_nobody_trained_on(voice):
    trained = read_file(training_file(CARRIED, voice)).decode()
    asked = questions(CARRIED, voice, 2)
    assert len(asked) == 2
    for question in asked:
        assert question.prompt not in trained
        assert question.reference


def test_a_demo_without_its_data_says_where_to_run_it(tmp_path):
    with pytest.raises(CommandError, match="from a clone"):
        training_file(tmp_path, VOICES[0])


@pytest.mark.parametrize(
    ("environment", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"PREFIX_HOST": "0.0.0.0", "PREFIX_PORT": "81"}, "http://127.0.0.1:81"),
        ({"PREFIX_HOST": "::1"}, "http://[::1]:8000"),
    ],
)
def test_the_printed_address_can_be_reached(environment, url):
    assert address(environment) == url


def test_the_greeting_names_the_place_of_the_admin_key_never_the_key():
    assert "d/secrets/admin_key" in greeting("http://h", {"PREFIX_DATA_DIR": "d"})
    shown = greeting("http://h", {"PREFIX_ADMIN_KEY": "very-secret-value"})
    assert "very-secret-value" not in shown
    assert "$PREFIX_ADMIN_KEY" in shown


def test_a_view_has_ended_only_in_a_final_state():
    ended = [s for s in ("queued", "running", "succeeded", "failed", "cancelled") if JobView("x", s).ended]
    assert ended == ["succeeded", "failed", "cancelled"]
