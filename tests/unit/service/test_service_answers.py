"""Answers: offsets that count characters, errors that map to the right status, a start that says what is wrong."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefix_engine import Delta, Failed, Finished, Request, TokenInfo
from prefix_engine.testing import tiny_base
from prefix_engine.text import TextStream, token_text
from service.answers import Answer
from service.errors import of_failure
from service.prompts import Plan
from service.schemas import CompletionBody
from service.settings import ServiceSettings

BASE = tiny_base()


def answered(data, **body):
    """The answer to one row that generated these bytes, a token each."""
    asked = CompletionBody(model="tiny", prompt="x", logprobs=0, **body)
    plan = Plan(asked, None, (Request((1,), len(data), None),), 1, 1)
    answer = Answer(plan, "tiny", "cmpl-1", 0, "f" * 64)
    stream = TextStream(BASE.tokenizer, ())
    chunks = []
    for byte in data:
        text, tokens, _ = stream.push(TokenInfo(byte, token_text(BASE.tokenizer, byte), -0.5))
        chunks += answer.pieces([(0, Delta(text, tokens))])
    text, tokens, _ = stream.finish()
    chunks += answer.pieces([(0, Delta(text, tokens)), (0, Finished("length", 1, len(data)))])
    return answer, chunks


@given(st.text(max_size=20))
def test_offsets_count_characters_also_where_one_spans_tokens(text):
    data = text.encode()
    answer, chunks = answered(data)
    (choice,) = answer.whole()["choices"]
    assert choice["text"] == text
    logprobs = choice["logprobs"]
    expected = [len(data[:i].decode(errors="ignore")) for i in range(len(data))]
    assert logprobs["text_offset"] == expected
    assert [o for c in chunks for o in c["choices"][0]["logprobs"]["text_offset"]] == expected
    assert len(logprobs["tokens"]) == len(data)
    assert "".join(c["choices"][0]["text"] for c in chunks) == text


@given(st.binary(max_size=20))
def test_any_bytes_make_an_answer(data):
    answer, chunks = answered(data)
    assert answer.whole()["choices"][0]["text"] == data.decode(errors="replace")
    assert len([c for c in chunks if c["choices"][0]["finish_reason"]]) == 1


CODES = ["revoked", "deadline", "context", "base_mismatch", "draining", "engine_stopped", "stale", "cancelled",
         "corrupt", "format", "shape", "non_finite", "load_failed", "internal", "something new"]  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_every_failure_has_a_status_and_says_whether_to_try_again(code):
    error = of_failure(Failed(code, "why"), "alice:voice")
    assert error.status >= 400
    headers = error.all_headers()
    assert ("retry-after" in headers) == (error.status == 503)
    if error.status in {409, 500}:
        assert headers["x-should-retry"] == "false"
    assert set(error.body()["error"]) == {"message", "type", "param", "code"}


def test_settings_come_from_the_environment(monkeypatch):
    monkeypatch.setenv("PREFIX_PORT", "9")
    monkeypatch.setenv("PREFIX_HOST", "")
    assert ServiceSettings().port == 9
    assert ServiceSettings().host == "127.0.0.1"


def test_a_metrics_port_that_is_taken_stops_the_start_with_one_sentence(tmp_path):
    kept = {key: v for key, v in os.environ.items() if not key.startswith("PREFIX_")}
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        environment = kept | {
            "PREFIX_DATA_DIR": str(tmp_path),
            "PREFIX_PORT": "0",
            "PREFIX_METRICS_PORT": port,
        }
        ended = subprocess.run(
            [sys.executable, "-m", "service"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines()[-1].startswith(f"PREFIX_METRICS_PORT: port {port} of 127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("PREFIX_PORT", "http", "PREFIX_PORT"),
        ("PREFIX_ROWS", "0", "PREFIX_ROWS"),
        ("PREFIX_BASE_MODEL", "/no/such/folder", "/no/such/folder"),
        ("PREFIX_ADMIN_KEY", "short", "PREFIX_ADMIN_KEY"),
    ],
)
def test_a_bad_setting_stops_the_start_with_one_sentence(tmp_path, name, value, told):
    kept = {key: v for key, v in os.environ.items() if not key.startswith("PREFIX_")}
    environment = kept | {
        "PREFIX_DATA_DIR": str(tmp_path),
        "PREFIX_PORT": "0",
        "HF_HUB_OFFLINE": "1",
        name: value,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "service"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert told in last
    assert "Traceback" not in ended.stderr
