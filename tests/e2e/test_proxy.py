"""nginx before the services: real nginx with the project's configuration, before servers that say who they are."""

import contextlib
import http.client
import json
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest

from deploy import proxy
from service.cli.children import Children, free_port

pytestmark = pytest.mark.skipif(proxy.missing() is not None, reason=str(proxy.missing()))
PATIENCE_S = 120
KEYS = [f"pfx_live_{name:0>12}_{'s' * 43}_abcdef" for name in ("a", "b", "c")]


class Upstream(ThreadingHTTPServer):
    """One server behind nginx: notes what comes and answers with its own port."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Answers)
        self.port = self.server_address[1]
        self.seen, self.bodies = [], []
        self.go_on, self.got_some, self.break_off = threading.Event(), threading.Event(), False
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def end(self):
        self.go_on.set()
        self.shutdown()
        self.server_close()


class _Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _answer(self):
        self.server.seen.append((self.command, self.path, dict(self.headers)))
        if self.server.break_off:
            self.close_connection = True
            return
        if self.path == "/v1/files":
            self._take()
        elif self.headers.get("transfer-encoding") == "chunked":
            self.server.bodies.append(b"".join(self._chunks()))
        else:
            self.server.bodies.append(self.rfile.read(int(self.headers.get("content-length", 0))))
        if self.path == "/v1/completions" and b'"stream": true' in self.server.bodies[-1]:
            self._stream()
            return
        told = str(self.server.port).encode()
        self.send_response(200)
        self.send_header("X-Request-ID", self.headers.get("X-Request-ID", "made-here"))
        self.send_header("Content-Length", str(len(told)))
        self.end_headers()
        self.wfile.write(told)

    do_GET = do_POST = do_DELETE = do_PUT = _answer  # noqa: N815 - the library calls them so

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _take(self):
        left = int(self.headers["content-length"])
        while left:
            left -= len(self.rfile.read(min(left, 1 << 10)))
            self.server.got_some.set()

    def _stream(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in (b"data: one\n\n", b"data: two\n\n"):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.flush()
            if piece.endswith(b"one\n\n"):
                self.server.go_on.wait(PATIENCE_S)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


class Way:
    """nginx and the servers behind it."""

    def __init__(self, folder, servers=None):
        self.folder = folder / "nginx"
        self.own = {server.port: server for server in (Upstream(), Upstream())} if servers is None else {}
        self.servers = servers or self.own
        port = free_port()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
        self.children = Children({}, folder)
        self.command = proxy.command(self.folder, port, list(self.servers))
        self.nginx = self.children.launch("nginx", self.command)
        self.port = port
        give_up = time.monotonic() + PATIENCE_S
        while True:
            self.children.check()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port), 5).close()
                return
            assert time.monotonic() < give_up
            time.sleep(0.02)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()
        self.children.stop()
        for server in self.own.values():
            server.end()

    def ask(self, method, path, body=None, key=KEYS[0], **headers):
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(
            method, path, content=body, headers=given | {"Authorization": f"Bearer {key}"}
        )

    def who(self, model, key=KEYS[0], **more):
        answer = self.ask("POST", "/v1/completions", json.dumps({"model": model, "prompt": "x", **more}), key)
        assert answer.status_code == 200
        return int(answer.text)

    def raw(self):
        """A connection whose bytes a test sends one by one."""
        return contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S))


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Way(tmp_path_factory.mktemp("proxy")) as way:
        yield way


@pytest.fixture
def way(tmp_path):
    """One that a test may spoil."""
    with Way(tmp_path) as own:
        yield own


def test_the_configuration_is_one_that_nginx_takes(shared):
    found = subprocess.run([*shared.command, "-t"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_equal_key_and_model_go_to_the_same_service_and_others_to_both(shared):
    names = [f"alice:voice-{n}" for n in range(24)]
    first = {(key, name): shared.who(name, key) for key in KEYS for name in names}
    assert set(first.values()) == set(shared.servers)
    assert {asked: shared.who(asked[1], asked[0], seed=2) for asked in first} == first
    # the key counts too: not all of them have all their models in the same places
    assert len({tuple(first[key, name] for name in names) for key in KEYS}) > 1


def test_a_service_that_comes_or_goes_moves_only_its_share(shared, tmp_path):
    names = [f"bob:{n}" for n in range(40)]
    before = {name: shared.who(name) for name in names}
    third = Upstream()
    with Way(tmp_path, {**shared.servers, third.port: third}) as more:
        after = {name: more.who(name) for name in names}
    third.end()
    moved = {name for name in names if after[name] != before[name]}
    assert moved
    assert {after[name] for name in moved} == {third.port}


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({"model": "alice:voice", "prompt": "x" * 70_000}),
        "no json",
        "[1]",
        json.dumps({"model": ["alice:voice"]}),
    ],
    ids=["above 64 KB", "no JSON", "no object", "no name"],
)
def test_a_body_whose_model_cannot_be_read_goes_by_the_key_alone_and_arrives_whole(shared, body):
    found = {int(shared.ask("POST", "/v1/completions", body).text) for _ in range(6)}
    assert len(found) == 1
    assert shared.servers[found.pop()].bodies[-1] == body.encode()


def test_a_body_of_unsaid_length_goes_by_the_key_alone_and_arrives_whole(shared):
    asked = json.dumps({"model": "alice:voice", "prompt": "x" * 200_000}).encode()
    found = {
        int(
            shared.ask(
                "POST", "/v1/completions", (asked[at : at + 5000] for at in range(0, len(asked), 5000))
            ).text
        )
        for _ in range(3)
    }
    assert len(found) == 1
    assert shared.servers[found.pop()].bodies[-1] == asked


def test_a_stream_arrives_piece_by_piece(shared):
    asked = {"model": "alice:stream", "stream": True}
    with shared.client.stream("POST", "/v1/completions", content=json.dumps(asked)) as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"data: one\n\n"  # the second is not written yet
        for server in shared.servers.values():
            server.go_on.set()
        assert b"".join(pieces) == b"data: two\n\n"


def begin_upload(connection, size):
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Length", str(size))
    connection.putheader("Authorization", f"Bearer {KEYS[0]}")
    connection.endheaders()


def test_an_upload_reaches_the_service_before_it_is_whole_and_lies_in_no_file(shared):
    with shared.raw() as connection:
        begin_upload(connection, 1 << 20)
        connection.send(b"x" * (1 << 19))
        give_up = time.monotonic() + PATIENCE_S
        while not any(server.got_some.is_set() for server in shared.servers.values()):
            assert time.monotonic() < give_up
            time.sleep(0.01)
        assert not [path for path in (shared.folder / "body").rglob("*") if path.is_file()]
        connection.send(b"x" * (1 << 19))
        answer = connection.getresponse()
        assert answer.read()
        assert answer.status == 200


def test_an_upload_above_every_limit_ends_at_nginx(shared):
    with shared.raw() as connection:
        begin_upload(connection, 67 << 20)
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 413


def test_a_request_id_goes_in_and_comes_back(shared):
    assert shared.ask("GET", "/v1/models", X_Request_ID="mine-1").headers["X-Request-ID"] == "mine-1"
    assert shared.ask("GET", "/v1/models").headers["X-Request-ID"] == "made-here"


def test_the_log_holds_ids_and_numbers_and_no_name_key_or_path(shared):
    shared.ask("DELETE", "/v1/users/alice-in-the-path", X_Request_ID="in-the-log-7")
    give_up = time.monotonic() + PATIENCE_S
    while "in-the-log-7" not in (said := shared.nginx.log.read_text()):
        assert time.monotonic() < give_up
        time.sleep(0.02)
    assert "alice" not in said
    assert "pfx_live" not in said
    done = [json.loads(line) for line in said.splitlines()]
    assert {"method": "DELETE", "status": "200"}.items() <= next(
        line for line in done if line["request_id"] == "in-the-log-7"
    ).items()


def test_a_completion_goes_on_to_another_service_only_while_nobody_has_taken_it(way):
    gone = way.who("alice:voice")
    way.servers[gone].end()
    left = next(port for port in way.servers if port != gone)
    assert way.who("alice:voice") == left  # nobody listened: safe to send again


@pytest.mark.parametrize(("method", "asked"), [("POST", 1), ("DELETE", 1), ("PUT", 1), ("GET", 2)])
def test_only_what_changes_nothing_is_sent_twice_when_a_service_breaks_off(way, method, asked):
    for server in way.servers.values():
        server.break_off = True
    answer = way.ask(method, "/v1/users/alice", "{}" if method != "GET" else None)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    assert answer.json()["error"]["code"] == "unavailable"
    assert sum(len(server.seen) for server in way.servers.values()) == asked
