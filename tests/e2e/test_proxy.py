"""nginx before the services: real nginx with the project's configuration, before servers that say who they are."""

import contextlib
import http.client
import json
import re
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2
import pytest
from service_making import serving

from deploy import proxy
from service.cli.children import Children, free_port

pytestmark = pytest.mark.skipif(proxy.missing() is not None, reason=str(proxy.missing()))
PATIENCE_S = 120
KEYS = [f"pfx_live_{name:0>12}_{'s' * 43}_abcdef" for name in ("a", "b", "c")]


class Upstream(ThreadingHTTPServer):
    """One server behind nginx: notes what comes and answers with its own port."""

    daemon_threads = True

    def __init__(self, port=0):
        super().__init__(("127.0.0.1", port), _Answers)
        self.port = self.server_address[1]
        self.seen, self.bodies = [], []
        self.go_on, self.got_some = threading.Event(), threading.Event()
        self.break_off = self.silent = False
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
        if self.server.silent:
            self.server.go_on.wait(PATIENCE_S)
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

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _answer  # noqa: N815 - the library calls them so

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
    """nginx and the servers behind it; `instead` are pieces of its configuration and what a test puts there."""

    def __init__(self, folder, servers=None, instead=None):
        self.folder = folder / "nginx"
        self.own = {server.port: server for server in (Upstream(), Upstream())} if servers is None else {}
        self.servers = servers or self.own
        port = free_port()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S, trust_env=False)
        self.children = Children({}, folder)
        self.command = proxy.command(self.folder, port, list(self.servers))
        told = (self.folder / "nginx.conf").read_text()
        for those, these in (instead or {}).items():
            assert told.count(those) == 1
            told = told.replace(those, these)
        (self.folder / "nginx.conf").write_text(told)
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
        assert answer.status == 413
        assert answer.headers["content-type"] == "application/json"
        error = json.loads(answer.read())["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert (error["code"], error["type"]) == ("too_large", "invalid_request_error")


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


def test_the_containers_own_probe_is_answered_by_a_real_service(tmp_path):
    (told,) = re.findall(r"^    CMD (\[.*\])$", (proxy.NGINX / "Dockerfile").read_text(), re.MULTILINE)
    *shell, line = json.loads(told)
    assert "/8080 " in line
    with serving(tmp_path / "store") as service, Way(tmp_path, {service.port: None}) as way:
        probe = [*shell, line.replace("/8080 ", f"/{way.port} ")]
        found = subprocess.run(probe, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert found.returncode == 0, found.stdout + found.stderr
    assert subprocess.run(probe, capture_output=True, check=False, timeout=PATIENCE_S).returncode != 0


def test_a_client_that_names_no_host_is_answered_by_a_real_service(tmp_path):
    with (
        serving(tmp_path / "store") as service,
        Way(tmp_path, {service.port: None}) as way,
        socket.create_connection(("127.0.0.1", way.port), PATIENCE_S) as connection,
    ):
        connection.sendall(b"GET /readyz HTTP/1.0\r\n\r\n")
        assert connection.makefile("rb").readline().startswith(b"HTTP/1.1 200 ")


def test_a_host_that_a_client_names_reaches_the_service_with_its_port(shared):
    for server in shared.servers.values():
        server.seen.clear()
    shared.ask("GET", "/v1/models", Host="here.example:8443")
    (seen,) = [told for server in shared.servers.values() for *_, told in server.seen]
    assert seen["Host"] == "here.example:8443"


MANY = [f"pfx_live_{n:0>12}_x" for n in range(24)]  # some go to either server first
METHODS = ["POST", "DELETE", "PUT", "PATCH", "GET"]


@pytest.mark.parametrize("method", METHODS)
def test_whatever_no_service_has_taken_goes_on_to_another(way, method):
    gone, left = way.servers.values()
    gone.end()
    for key in MANY:
        assert (
            int(way.ask(method, "/v1/users/alice", None if method == "GET" else "{}", key).text) == left.port
        )
    assert {told for told, *_ in left.seen} == {method}  # on the wire it is what the client sent
    assert {json.loads(line)["method"] for line in way.nginx.log.read_text().splitlines()} <= {method}


@pytest.mark.parametrize("method", METHODS)
def test_a_service_whose_machine_answers_nothing_is_passed_over_after_a_second(tmp_path, method):
    with contextlib.ExitStack() as ends, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        port = deaf.getsockname()[1]
        ends.enter_context(socket.create_connection(("127.0.0.1", port)))  # now it has room for nobody
        left = Upstream()
        ends.callback(left.end)
        way = ends.enter_context(Way(tmp_path, {port: None, left.port: left}))
        for key in MANY:
            answer = way.ask(method, "/v1/users/alice", None, key)
            assert (answer.status_code, answer.text) == (200, str(left.port))
            if f'"upstream":"127.0.0.1:{port}, ' in way.nginx.log.read_text():
                return  # it was asked first
    pytest.fail("the deaf one was never asked")


def test_services_that_were_both_away_are_asked_again_at_once(way):
    for server in way.servers.values():
        server.end()
    assert {way.ask("GET", "/v1/models", key=key).status_code for key in KEYS} == {503}
    for port in way.servers:
        way.own[port] = Upstream(port)
    assert {way.ask(method, "/v1/models", key=key).status_code for key in KEYS for method in METHODS} == {200}


@pytest.mark.parametrize(
    ("method", "asked"), [("POST", 1), ("DELETE", 1), ("PUT", 1), ("PATCH", 1), ("GET", 2)]
)
def test_only_what_changes_nothing_is_sent_twice_when_a_service_is_silent(tmp_path, method, asked):
    with Way(tmp_path, instead={"proxy_read_timeout 660s;": "proxy_read_timeout 1s;"}) as way:
        for server in way.servers.values():
            server.silent = True
        body = None if method in {"GET", "DELETE"} else "{}"
        assert way.ask(method, "/v1/users/alice", body).status_code == 503
        assert sum(len(server.seen) for server in way.servers.values()) == asked


def from_outside(way, address, path="/v1/models"):
    return way.client.get(path, headers={"X-Forwarded-For": address})


def test_one_clients_requests_are_bounded_and_nobody_elses_and_none_of_our_own_addresses(tmp_path):
    few = {"rate=500r/s": "rate=1r/m", "burst=1000": "burst=2"}
    with Way(tmp_path, instead=few) as way:
        assert [from_outside(way, "203.0.113.7").status_code for _ in range(5)] == [200, 200, 200, 429, 429]
        refused = from_outside(way, "10.1.2.3, 203.0.113.7, 10.0.0.1")  # whatever it says of itself
        assert refused.status_code == 429
        assert refused.headers["Retry-After"] == "1"
        assert refused.json()["error"]["code"] == "too_many_requests"
        assert from_outside(way, "203.0.113.8").status_code == 200
        assert {way.ask("GET", "/v1/models").status_code for _ in range(9)} == {200}
        assert {from_outside(way, "192.168.1.9").status_code for _ in range(9)} == {200}


def test_what_one_client_asks_at_once_is_bounded(tmp_path):
    with Way(tmp_path, instead={"limit_conn at_once 1024;": "limit_conn at_once 1;"}) as way:
        outside = {"X-Forwarded-For": "203.0.113.7"}
        asked = json.dumps({"model": "alice:stream", "stream": True})
        with way.client.stream("POST", "/v1/completions", content=asked, headers=outside) as answer:
            pieces = answer.iter_raw()
            assert next(pieces)
            assert from_outside(way, "203.0.113.7").status_code == 429
            assert from_outside(way, "203.0.113.8").status_code == 200
            for server in way.servers.values():
                server.go_on.set()
            assert list(pieces)
        give_up = time.monotonic() + PATIENCE_S
        while from_outside(way, "203.0.113.7").status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.02)


@pytest.mark.parametrize("path", ["/readyz", "//readyz", "/%72eadyz"])
def test_whether_it_is_ready_is_told_to_addresses_of_our_own_alone(shared, path):
    def told(address, path=path):
        with shared.raw() as connection:  # which sends the path as it is
            connection.request("GET", path, headers={"X-Forwarded-For": address} if address else {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    assert {told(own)[0] for own in (None, "127.0.0.1", "172.31.0.9", "192.168.1.2")} == {200}
    for outside in ("203.0.113.7", "127.0.0.1, 203.0.113.7", "172.32.0.1", "2001:db8::7"):
        status, body = told(outside)
        assert status == 404
        assert json.loads(body)["error"]["code"] == "not_found"
    assert told("203.0.113.7", "/livez")[0] == 200


def test_a_completion_goes_on_to_another_service_only_while_nobody_has_taken_it(way):
    gone = way.who("alice:voice")
    way.servers[gone].end()
    left = next(port for port in way.servers if port != gone)
    assert way.who("alice:voice") == left  # nobody listened: safe to send again


@pytest.mark.parametrize(
    ("method", "asked"), [("POST", 1), ("DELETE", 1), ("PUT", 1), ("PATCH", 1), ("GET", 2)]
)
def test_only_what_changes_nothing_is_sent_twice_when_a_service_breaks_off(way, method, asked):
    for server in way.servers.values():
        server.break_off = True
    answer = way.ask(method, "/v1/users/alice", "{}" if method != "GET" else None)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"] == "2"
    assert answer.json()["error"]["code"] == "unavailable"
    assert sum(len(server.seen) for server in way.servers.values()) == asked
