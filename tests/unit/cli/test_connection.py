"""What the command does with each kind of answer."""

import pytest
from wire import piece, sse

from service.cli.connection import Connection, Refused, Unreachable
from service.cli.terminal import CommandError


@pytest.fixture
def connection(wire):
    with Connection(wire.url, "pfx_test") as connection:
        yield connection


def test_the_key_is_sent_as_bearer(wire, connection):
    wire.answers["GET", "/v1/models"] = (200, {"data": []})
    connection.get("/v1/models")
    assert wire.requests[0][2]["Authorization"] == "Bearer pfx_test"


def test_fields_that_are_none_are_not_sent(wire, connection):
    wire.answers["POST", "/v1/keys"] = (200, {})
    connection.post("/v1/keys", {"user": None, "scopes": ["read"]})
    assert wire.requests[0][3] == b'{"scopes":["read"]}'


def test_an_error_envelope_becomes_its_message_status_and_code(wire, connection):
    error = {"message": "no such model", "type": "invalid_request_error", "param": "model", "code": "nope"}
    wire.answers["GET", "/v1/models/x"] = (404, {"error": error})
    with pytest.raises(Refused, match=r"^no such model \(404, nope\)$") as caught:
        connection.get("/v1/models/x")
    assert (caught.value.status, caught.value.code, caught.value.param) == (404, "nope", "model")


def test_an_error_without_an_envelope_is_still_readable(wire, connection):
    wire.answers["GET", "/v1/models"] = (502, b"<html>bad gateway</html>")
    with pytest.raises(Refused, match=r"the service gave no reason \(502\)"):
        connection.get("/v1/models")


def test_an_answer_that_is_no_json_is_a_sentence(wire, connection):
    wire.answers["GET", "/v1/models"] = (200, b"<html>")
    with pytest.raises(CommandError, match="does not answer like this service"):
        connection.get("/v1/models")


def test_no_service_is_a_sentence_that_says_what_to_do():
    with (
        Connection("http://127.0.0.1:1", None) as connection,
        pytest.raises(Unreachable, match="make serve"),
    ):
        connection.get("/v1/models")


def test_pages_are_followed_to_the_last(wire, connection):
    wire.answers["GET", "/v1/files"] = [
        (200, {"data": [{"id": "a"}, {"id": "b"}], "has_more": True}),
        (200, {"data": [{"id": "c"}], "has_more": False}),
    ]
    assert [entry["id"] for entry in connection.pages("/v1/files")] == ["a", "b", "c"]
    assert wire.requests[1][1] == "/v1/files?after=b"


def test_a_stream_yields_its_chunks_and_skips_comments(wire, connection):
    wire.answers["POST", "/v1/completions"] = (200, sse(piece(0, "a"), piece(0, "b", "stop")))
    chunks = list(connection.stream({"model": "m", "prompt": "p"}))
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["a", "b"]


def test_a_stream_without_its_end_mark_is_an_error(wire, connection):
    wire.answers["POST", "/v1/completions"] = (200, sse(piece(0, "a"), done=False))
    with pytest.raises(Unreachable, match="broke off"):
        list(connection.stream({"model": "m", "prompt": "p"}))


def test_an_error_inside_a_stream_is_raised_after_what_came_before(wire, connection):
    error = {"error": {"message": "revoked", "code": "revoked"}}
    wire.answers["POST", "/v1/completions"] = (200, sse(piece(0, "a"), error))
    stream = connection.stream({"model": "m", "prompt": "p"})
    assert next(stream)["choices"][0]["text"] == "a"
    with pytest.raises(Refused, match="revoked"):
        next(stream)


def test_a_stream_refused_before_it_begins_keeps_its_status(wire, connection):
    wire.answers["POST", "/v1/completions"] = (429, {"error": {"message": "later", "code": "queue_full"}})
    with pytest.raises(Refused) as caught:
        list(connection.stream({"model": "m", "prompt": "p"}))
    assert caught.value.status == 429
