"""More than there is room for: who is turned away, how cheaply, and what is left of everybody else."""

import contextlib
import json
import socket
import threading
import time

import pytest
from service_making import complete, error_of, serving, slowed
from sqlalchemy import Engine, event
from waiting import Hanging, wait_until

LONG = {"max_tokens": 200, "min_tokens": 200}


def hurry(service):
    """As fast as it can again."""
    runner = service.parts.engine._loop._runner
    runner.step = type(runner).step.__get__(runner)


@contextlib.contextmanager
def held_up(service, client, count, **body):
    """So many completions at once, in steps that take long; all of them are answered in the end."""
    got = []

    def ask():
        with service.client(client.key) as own:
            got.append(complete(own, "tiny", **body).status_code)

    threads = [threading.Thread(target=ask) for _ in range(count)]
    with slowed(service, 0.2):
        for thread in threads:
            thread.start()
        yield
    for thread in threads:
        thread.join(120)
    assert got == [200] * count


@pytest.fixture
def crowded(tmp_path):
    """A service with room for 1200 tokens, and a tenant that holds its half of them."""
    with serving(tmp_path, rows=1, queue_tokens=1200) as service:
        greedy = service.tenant()
        assert complete(greedy, "tiny", "abc", max_tokens=197).status_code == 200
        with held_up(service, greedy, 3, prompt="abc", max_tokens=197, min_tokens=197):
            wait_until(lambda: service.parts.tickets.tokens.held(greedy.tenant_id) == 600)
            yield service, greedy


def test_a_burst_of_one_tenant_meets_its_part_of_the_line_and_leaves_room_for_others(crowded):
    service, greedy = crowded
    refused = complete(greedy, "tiny", "abc", max_tokens=197)
    assert refused.status_code == 429
    assert error_of(refused)["code"] == "queue_share_full"
    assert error_of(refused)["type"] == "rate_limit_error"
    assert 1 <= int(refused.headers["retry-after"]) <= 75
    assert int(refused.headers["retry-after-ms"]) >= 1000
    other, got = service.tenant(), []
    waiting = threading.Thread(
        target=lambda: got.append(complete(other, "tiny", "abc", max_tokens=3).status_code)
    )
    waiting.start()
    wait_until(lambda: got or service.parts.tickets.tokens.held(other.tenant_id))
    assert got in ([], [200])
    hurry(service)
    waiting.join(120)
    assert got == [200]


def test_who_finds_the_line_full_of_others_is_told_that_it_is_ours(crowded):
    service, _ = crowded
    refused = complete(service.tenant(), "tiny", ["abc"] * 2, max_tokens=150)
    assert refused.status_code == 503
    assert error_of(refused)["code"] == "overloaded"
    assert int(refused.headers["retry-after"]) >= 1


def test_what_never_fits_is_400(crowded):
    service, greedy = crowded
    refused = complete(greedy, "tiny", ["abc"] * 4, **LONG)  # the door knows this tenant and turns it away
    assert refused.status_code == 429
    refused = complete(service.tenant(), "tiny", ["abc"] * 4, **LONG)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "max_tokens"


def test_a_refusal_asks_the_database_nothing_and_keeps_the_connection(crowded):
    service, greedy = crowded
    asked = []

    def note(_connection, _cursor, statement, *_):
        asked.append((threading.current_thread().name, statement))

    event.listen(Engine, "before_cursor_execute", note)
    try:
        assert greedy.get("/v1/models").status_code == 200  # what is let in does ask
        assert [what for thread, what in asked if "worker thread" in thread.lower()]
        asked.clear()
        with service.client(greedy.key) as client:
            for _ in range(20):
                refused = complete(client, "tiny", "x" * 4000, max_tokens=1)
                assert error_of(refused)["code"] == "queue_share_full"
                assert "connection" not in refused.headers
    finally:
        event.remove(Engine, "before_cursor_execute", note)
    # The change feed, the meter and the upkeep go on in threads of their own.
    assert [what for thread, what in asked if "worker thread" in thread.lower()] == []


def test_a_revoked_key_is_let_in_by_no_memory(crowded):
    service, greedy = crowded
    made = greedy.post("/v1/keys", json={}).json()
    with service.client(made["api_key"]) as other:
        assert complete(other, "tiny", "abc", max_tokens=197).status_code == 429
        assert greedy.delete(f"/v1/keys/{made['id']}").status_code == 200
        assert other.get("/v1/models").status_code == 401


def test_requests_of_one_tenant_at_once_are_bounded(tmp_path):
    with serving(tmp_path, rows=2, tenant_requests=3) as service:
        acme = service.tenant()
        with held_up(service, acme, 3, **LONG):
            wait_until(lambda: service.parts.tickets.count() == 3)
            refused = acme.get("/v1/models")
            assert refused.status_code == 429
            assert error_of(refused)["code"] == "too_many_requests"
            assert int(refused.headers["retry-after"]) >= 1
            assert service.tenant().get("/v1/models").status_code == 200
        assert acme.get("/v1/models").status_code == 200


def announced(tenant, length):
    """The head of a request with a body of `length` bytes, which may come or not."""
    return (
        f"POST /v1/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {tenant.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    ).encode()


def test_bodies_that_are_announced_and_not_sent_fill_no_memory(tmp_path):
    length = 4 << 20
    with serving(tmp_path, held_bytes=length, max_body_bytes=length, stall_seconds=300) as service:
        acme, other = service.tenant(), service.tenant()
        held = service.parts.door.bytes
        most = held.bound // 2 // length  # one tenant comes to half of what there is
        with contextlib.ExitStack() as opened:
            for n in range(most):
                slow = opened.enter_context(socket.create_connection(("127.0.0.1", service.port)))
                slow.sendall(announced(acme, length))
                wait_until(lambda n=n: held.total == (n + 1) * length)
            with socket.create_connection(("127.0.0.1", service.port)) as one_more:
                one_more.settimeout(60)
                one_more.sendall(announced(acme, length))
                said = one_more.recv(4096)
                assert said.startswith(b"HTTP/1.1 429 ")
                assert b"retry-after: " in said
            assert complete(other, "tiny").status_code == 200
        wait_until(lambda: held.total == 0)
        assert complete(acme, "tiny").status_code == 200


def test_a_body_that_is_announced_and_never_sent_is_given_up(tmp_path):
    with serving(tmp_path, held_bytes=4 << 20, max_body_bytes=4 << 20, stall_seconds=1) as service:
        acme = service.tenant()
        with socket.create_connection(("127.0.0.1", service.port)) as slow:
            slow.sendall(announced(acme, 4 << 20))
            slow.settimeout(60)
            assert slow.recv(4096).startswith(b"HTTP/1.1 408 ")
        wait_until(lambda: service.parts.door.bytes.total == 0)
        assert complete(acme, "tiny").status_code == 200


def test_a_stream_that_nobody_reads_is_cut_off_and_frees_its_rows(tmp_path):
    with serving(tmp_path, stall_seconds=1) as service:
        acme = service.tenant()
        body = {
            "model": "tiny",
            "prompt": ["x"] * 128,
            "stream": True,
            "logprobs": 5,
            "temperature": 0,
            **LONG,
        }
        data = json.dumps(body).encode()
        with socket.socket() as raw, slowed(service, 0.05):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            raw.connect(("127.0.0.1", service.port))
            raw.sendall(announced(acme, len(data)) + data)
            wait_until(lambda: service.parts.engine.stats().running)
            most = 0
            while service.parts.tickets.count():
                unsent = [
                    t.get_write_buffer_size() for t in list(service.parts.connections._transports.values())
                ]
                most = max([most, *unsent])
                time.sleep(0.02)
        wait_until(lambda: not service.parts.engine.stats().running)
        assert service.parts.tickets.tokens.total == 0
        assert service.parts.engine.stats().generated_tokens < 128 * 200  # it did not run to its end
        assert most < 1 << 20
        assert complete(acme, "tiny").status_code == 200


def test_idle_connections_make_room_for_those_that_ask(tmp_path):
    with serving(tmp_path, connections=32) as service:
        acme = service.tenant()
        idle = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(200)]
        try:
            for _ in range(3):
                with service.client(acme.key) as fresh:
                    assert complete(fresh, "tiny").status_code == 200
            assert service.parts.connections.count <= 32
            idle[0].settimeout(60)
            assert idle[0].recv(1) == b""
        finally:
            for one in idle:
                one.close()


def opened(service):
    """What uvicorn has open."""
    return service.server.server_state.connections


@contextlib.contextmanager
def standing_still(service):
    """Its event loop does nothing meanwhile: what comes is seen in one turn of it."""
    still, go_on = threading.Event(), threading.Event()

    def stand():
        still.set()
        go_on.wait()

    service.parts.connections._loop.call_soon_threadsafe(stand)
    assert still.wait(60)
    try:
        yield
    finally:
        go_on.set()


def at_once(service, tenant, count):
    """What so many connections are answered that come with a request each in one turn of the loop."""
    with contextlib.ExitStack() as clients:
        with standing_still(service):
            raws = [
                clients.enter_context(socket.create_connection(("127.0.0.1", service.port), 60))
                for _ in range(count)
            ]
            for raw in raws:
                raw.sendall(f"GET /v1/models HTTP/1.1\r\nauthorization: Bearer {tenant.key}\r\n\r\n".encode())
        return [b"".join(iter(lambda raw=raw: raw.recv(4096), b"")) for raw in raws]


def test_where_all_connections_are_busy_one_more_is_told_to_come_again(tmp_path):
    with serving(tmp_path, connections=16, rows=2) as service:
        acme = service.tenant()
        with contextlib.ExitStack() as busy:
            gate = (
                threading.Event()
            )  # before a step has told how long the queue takes, nobody is refused for it
            service.parts.engine._post(gate.wait)
            busy.callback(gate.set)
            for _ in range(service.parts.connections._most):
                body = {"model": "tiny", "prompt": "x", "stream": True, **LONG}
                client = busy.enter_context(service.client(acme.key))
                threading.Thread(target=client.post, args=("/v1/completions",), kwargs={"json": body}).start()
            wait_until(lambda: service.parts.tickets.count() == service.parts.connections._most)
            with service.client(acme.key) as surplus:
                refused = surplus.get("/v1/models")
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "overloaded"
            assert refused.headers["retry-after"] == "1"
            assert refused.headers["connection"] == "close"
            for told in at_once(service, acme, 20):
                assert told.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 1\r\n" in told
                assert told.endswith(b"}")
            assert service.parts.connections.count == service.parts.connections._most
            wait_until(lambda: len(opened(service)) == service.parts.connections._most)
            gate.set()
            wait_until(lambda: not service.parts.tickets.count())
        assert acme.get("/v1/models").status_code == 200


def test_who_is_turned_away_is_let_go_soon_and_few_are_kept_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("service.connections._TURNED_AWAY", 8)
    monkeypatch.setattr("service.connection._SURPLUS_S", 0.5)
    with serving(tmp_path, connections=16) as service, contextlib.ExitStack() as clients:
        acme = service.tenant()
        acme.close()
        for n in range(16):  # half a body each, so that none is idle
            raw = clients.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            raw.sendall(announced(acme, 1000))
            wait_until(lambda n=n: service.parts.connections.count == n + 1)
        wait_until(lambda: all(not one.is_idle for one in [*opened(service)]))
        with standing_still(service):
            silent = [
                clients.enter_context(socket.create_connection(("127.0.0.1", service.port), 60))
                for _ in range(20)
            ]
        most = 0
        for raw in silent:
            most = max(most, len(service.parts.connections._surplus_open))
            with contextlib.suppress(ConnectionResetError):
                assert raw.recv(1) == b""
        assert most <= 8
        wait_until(lambda: len(opened(service)) == service.parts.connections.count == 16)
        assert not service.parts.connections._surplus_open


@pytest.mark.parametrize("sent", [b"", b"GET /v1/models HTTP/1.1\r\nhost: x\r\n"])
def test_who_sends_no_whole_head_is_hung_up_on(tmp_path, monkeypatch, sent):
    monkeypatch.setattr("service.connection._HEAD_S", 0.5)
    with serving(tmp_path) as service, socket.create_connection(("127.0.0.1", service.port)) as raw:
        raw.sendall(sent)
        raw.settimeout(60)
        assert raw.recv(1) == b""
        wait_until(lambda: not service.parts.connections.count)


def test_requests_that_only_score_say_nothing_about_the_speed(tmp_path):
    with serving(tmp_path) as service:
        acme, telemetry = service.tenant(), service.parts.telemetry
        assert complete(acme, "tiny", max_tokens=60, min_tokens=60).status_code == 200
        measured = telemetry.token_seconds
        assert measured > 0
        score = {"prompt": [5] * 100, "max_tokens": 0, "echo": True, "logprobs": 0}
        with held_up(service, acme, 4, **score):
            time.sleep(0.4)
            assert complete(acme, "tiny", **score).status_code == 200
        assert telemetry.token_seconds == measured


def test_a_quiet_service_is_not_taken_for_a_slow_one(tmp_path):
    """A few tokens a second are all that was asked for, not all that there can be: a burst is let in."""
    with serving(tmp_path, rows=8, deadline_seconds=60) as service:
        acme, telemetry = service.tenant(), service.parts.telemetry
        with slowed(service, 0.05):
            asking = threading.Thread(target=complete, args=(acme, "tiny"), kwargs=LONG)
            asking.start()
            time.sleep(1.5)  # of twenty tokens a second
            with service.client(acme.key) as other:
                assert complete(other, "tiny", max_tokens=1).status_code == 200
            runner = service.parts.engine._loop._runner
            runner.step = standing = Hanging(runner.step)
            assert standing.begun.wait(120)  # so that all that come now find one row running
            got = []
            threads = [
                threading.Thread(target=lambda: got.append(complete(acme, "tiny", **LONG).status_code))
                for _ in range(24)
            ]
            for thread in threads:
                thread.start()
            wait_until(lambda: got or service.parts.tickets.count() == 25)
            hurry(service)
            standing.go_on.set()
            for thread in (asking, *threads):
                thread.join(120)
            assert got == [200] * 24
        with service.client(acme.key) as other, held_up(service, acme, 24, **LONG):
            wait_until(lambda: telemetry.token_seconds > 0.15)
            assert service.parts.tickets.count() == 24
            late = complete(other, "tiny", **LONG)  # 25 x 200 tokens by eights, in steps of 0.2 s
            assert error_of(late)["code"] == "overloaded"
            assert "of work wait, longer than the deadline of 60 s" in error_of(late)["message"]
            hurry(service)


def seen(service, tenant):
    """Seconds of work ahead of a tenant, and by the rows that there may be, once the last second can tell."""
    admission = service.parts.admission

    def told():
        time.sleep(0.3)
        wait = admission._wait(tenant.tenant_id)
        ahead = service.parts.tickets.tokens_ahead(tenant.tenant_id)
        best = ahead / service.parts.settings.rows * service.parts.telemetry.token_seconds
        return (wait, best) if admission._speed else None

    return wait_until(told)


def test_rows_that_have_no_room_are_not_counted_on(tmp_path, monkeypatch):
    monkeypatch.setattr("service.admission._SAMPLE_S", 0.2)
    monkeypatch.setattr("service.admission._OLD", 100)
    with serving(tmp_path, rows=64, kv_bytes=1 << 20) as service:
        acme = service.tenant()
        with held_up(service, acme, 40, **LONG):
            wait, best = seen(service, acme)
            assert wait > 2 * best > 0
            hurry(service)


def test_prompts_are_work_though_they_have_but_one_token_each(tmp_path, monkeypatch):
    monkeypatch.setattr("service.admission._SAMPLE_S", 0.2)
    monkeypatch.setattr("service.admission._OLD", 100)
    with serving(tmp_path, rows=2) as service:
        acme = service.tenant()
        with held_up(service, acme, 40, max_tokens=1):
            wait, best = seen(service, acme)
            assert wait > 0 == best
            hurry(service)


def test_refusals_are_counted_by_their_bound(crowded):
    service, greedy = crowded
    registry = service.parts.telemetry.registry

    def count(reason):
        return registry.get_sample_value("prefix_refusals_total", {"reason": reason})

    assert count("tenant_share") == 0
    assert complete(greedy, "tiny", "abc", max_tokens=197).status_code == 429
    assert complete(greedy, "tiny", "abc", max_tokens=197).status_code == 429
    late = service.tenant().post(
        "/v1/completions", json={"model": "tiny", "prompt": "x"}, headers={"x-deadline-seconds": "0.000001"}
    )
    assert late.status_code == 503
    wait_until(lambda: count("deadline") == 1)  # it is counted once it is sent
    assert count("tenant_share") == 2
    assert registry.get_sample_value("prefix_refusal_seconds_count") == 3
    assert registry.get_sample_value("prefix_queue_tokens") == service.parts.tickets.tokens.total
    assert registry.get_sample_value("prefix_connections") == service.parts.connections.count
