"""Clients that take nothing of what they asked for, and more of them than there is room for."""

import contextlib
import socket
import time
from types import SimpleNamespace

import pytest
from service_making import complete, serving
from store_making import rows
from waiting import wait_until

from service import errors

LARGE = 4 << 20  # bytes of an answer: many times what the kernels hold for one connection
PATHS = ["/v1/fine_tuning/jobs", "/openapi.json"]


@contextlib.contextmanager
def unread(service, path, key, times=1, more=""):
    """A connection that asks for the same so many times at once and reads nothing of what it is answered."""
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", service.port))
        head = f"GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n{more}\r\n"
        raw.sendall(head.encode() * times)
        yield raw


def with_a_long_list(service):
    """A tenant whose list of jobs is `LARGE`."""
    acme = service.tenant()
    alice = service.store.owners.create_user(acme.scope, "alice")
    with service.store.datasets.writer(acme.scope, alice, "train.jsonl") as writer:
        writer.write(rows(("a", "b")))
        file = writer.finish().id
    fingerprint, told = service.base.fingerprint, {"told": "x" * LARGE}
    service.store.jobs.create(acme.scope, alice, "v", [file], base_fingerprint=fingerprint, metadata=told)
    return acme


def opened(service):
    """What uvicorn has open, lost or not."""
    return service.server.server_state.connections


@pytest.mark.parametrize(("path", "times"), [(PATHS[0], 1), (PATHS[0], 3), (PATHS[1], 64)])
def test_an_answer_that_nobody_reads_is_cut_off_though_it_is_whole(tmp_path, path, times, monkeypatch):
    later = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr("service.connection.time", clock)
    monkeypatch.setattr("service.connections._CUT_LOOK_S", 0.1)

    def cut():
        later[0] += 61.0
        return not opened(service)

    with serving(tmp_path, stall_seconds=60) as service:
        acme = with_a_long_list(service)
        acme.close()
        wait_until(lambda: not opened(service))
        with unread(service, path, acme.key, times):
            wait_until(lambda: any(one.transport.get_write_buffer_size() for one in [*opened(service)]))
            wait_until(cut)
        assert not service.parts.connections.count
        with service.client(acme.key) as again:
            assert complete(again, "tiny").status_code == 200


@pytest.mark.parametrize("more", ["", "connection: close\r\n"])
def test_no_more_connections_are_open_than_may_be_though_none_is_read(tmp_path, more):
    with serving(tmp_path, connections=16, stall_seconds=3600) as service, contextlib.ExitStack() as clients:
        acme = with_a_long_list(service)
        acme.close()

        def answered(raw):
            """Whether its answer is whole, as far as the app knows."""
            found = [one.cycle for one in [*opened(service)] if one.client == raw.getsockname()]
            return found and found[0] is not None and found[0].response_complete

        for _ in range(40):
            raw = clients.enter_context(unread(service, PATHS[0], acme.key, more=more))
            wait_until(lambda raw=raw: answered(raw))
            wait_until(lambda: len(opened(service)) <= 16)
        assert service.parts.connections.count == len(opened(service)) == 16
        assert all(one.transport.get_write_buffer_size() for one in [*opened(service)])
        with service.client(acme.key) as again:
            assert complete(again, "tiny").status_code == 200


def test_who_takes_a_little_of_an_answer_all_the_time_is_not_cut_off(tmp_path, monkeypatch):
    """By a clock that what it takes moves on: eight times as far as who takes nothing has."""
    taken = [0]
    clock = SimpleNamespace(monotonic=lambda: taken[0] / (32 << 10) * 30.0)
    monkeypatch.setattr("service.connection.time", clock)
    monkeypatch.setattr("service.connections._CUT_LOOK_S", 0.02)
    with serving(tmp_path, stall_seconds=30) as service:
        acme = with_a_long_list(service)
        acme.close()
        with unread(service, PATHS[0], acme.key) as raw:
            raw.settimeout(60)
            while taken[0] < 256 << 10:
                piece = raw.recv(800)
                assert piece
                taken[0] += len(piece)
                time.sleep(0.005)
            assert opened(service)


def test_a_refusal_keeps_nothing_of_the_request_that_it_refused(tmp_path):
    with serving(tmp_path) as service, service.client("psk_nobody") as nobody:
        for _ in range(3):
            assert nobody.get("/v1/models").status_code == 401
    assert errors.NO_KEY.__traceback__ is None
