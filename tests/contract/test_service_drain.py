"""A service that is asked to stop while bodies are still on their way."""

import contextlib
import json
import signal
import socket

import pytest
from service_making import complete, serving
from waiting import wait_until

FORM = "content-type: multipart/form-data; boundary=b"
FILE = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n{"prompt": "p", "complet'
JSON = "content-type: application/json"
BODIES = {
    "an upload": ("/v1/files", FORM, FILE, 100_000),
    "an upload's first field": ("/v1/files", FORM, b"--b\r\n", 100_000),
    "a large upload": ("/v1/files", FORM, FILE, 5_000_000),
    "a prompt": ("/v1/completions", JSON, b'{"model": "tiny", "pro', 1000),
    "a job": ("/v1/fine_tuning/jobs", JSON, b"{", 100_000),
}


def inside(service, tenant):
    """How many of a tenant's requests are; one that was answered leaves a moment later."""
    return service.parts.door._inside[tenant.tenant_id]


def answer_of(raw):
    """Status, headers and body of all that comes until the connection ends."""
    got = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := raw.recv(1 << 16):
            got += piece
    head, _, body = got.partition(b"\r\n\r\n")
    first, *lines = head.decode().lower().split("\r\n")
    return int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body


@pytest.mark.parametrize("what", BODIES)
def test_a_body_that_is_longer_on_its_way_than_the_drain_is_to_be_sent_again(tmp_path, what):
    path, kind, begun, length = BODIES[what]
    with serving(tmp_path, drain_seconds=0.2) as service:
        acme = service.tenant()
        alice = service.user(acme, "alice")
        wait_until(lambda: not inside(service, acme))
        with socket.create_connection(("127.0.0.1", service.port)) as raw:
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\n{kind}\r\ncontent-length: {length}\r\n"
            raw.sendall(f"{head}x-request-id: mine-1\r\nauthorization: Bearer {alice.key}\r\n\r\n".encode())
            raw.sendall(begun)
            wait_until(lambda: inside(service, acme))
            if begun is FILE:
                wait_until(service.parts.tickets.count)
            service.server.handle_exit(signal.SIGTERM, None)
            raw.settimeout(120)
            status, headers, body = answer_of(raw)
        assert status == 503
        assert json.loads(body)["error"]["code"] == "draining"
        assert headers["retry-after"] == "1"
        assert headers["x-request-id"] == "mine-1"
        wait_until(lambda: not service._thread.is_alive())
        assert not service.parts.tickets.count()


def test_a_body_that_comes_during_the_drain_is_answered(tmp_path):
    with serving(tmp_path, drain_seconds=120) as service:
        acme = service.tenant()
        assert complete(acme, "tiny").status_code == 200
        wait_until(lambda: not inside(service, acme))
        body = json.dumps({"model": "tiny", "prompt": "x", "max_tokens": 1}).encode()
        with socket.create_connection(("127.0.0.1", service.port)) as raw:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\n{JSON}\r\ncontent-length: {len(body)}\r\n"
            raw.sendall(f"{head}authorization: Bearer {acme.key}\r\n\r\n".encode() + body[:9])
            wait_until(lambda: inside(service, acme))
            service.server.handle_exit(signal.SIGTERM, None)
            wait_until(lambda: service.parts.not_ready_here() == "draining")
            raw.sendall(body[9:])
            raw.settimeout(120)
            status, _, _ = answer_of(raw)
        assert status == 200
