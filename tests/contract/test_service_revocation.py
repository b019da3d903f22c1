"""Deletion as the wire shows it: nothing is written after the 200, everything is gone, others go on."""

import contextlib
import json
import socket
import threading
import time

import httpx2
import pytest
from database_making import everything
from service_making import Serving, complete, error_of, events, serving
from sqlalchemy import update
from waiting import Hanging, lasting, wait_until

from prefix_store.errors import Unavailable
from prefix_store.tables import processes
from service import deletion, erasing
from service.revocation import STALE_S

LONG = 200


class Reader(threading.Thread):
    """One raw streaming client."""

    def __init__(self, service, key, model, tokens=LONG, receive_buffer=None, **body):
        super().__init__(daemon=True)
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(60)
        self.socket.connect(("127.0.0.1", service.port))
        asked = {"model": model, "prompt": "x", "max_tokens": tokens, "stream": True, "min_tokens": tokens}
        data = json.dumps(asked | body).encode()
        self.socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/json\r\n"
            + f"authorization: Bearer {key}\r\ncontent-length: {len(data)}\r\n\r\n".encode()
            + data
        )
        self.data = b""
        self.first = threading.Event()

    def run(self):
        try:
            while piece := self.socket.recv(1 << 16):
                self.data += piece
                self.first.set()
                if b"0\r\n\r\n" in piece:
                    break
        except OSError:
            pass
        self.socket.close()

    @property
    def status(self):
        return int(self.data.split(b" ", 2)[1])

    @property
    def texts(self):
        lines = self.data.decode(errors="replace").splitlines()
        return [e["choices"][0]["text"] for e in events(lines) if e.get("choices")]

    @property
    def errors(self):
        return [e["error"] for e in events(self.data.decode(errors="replace").splitlines()) if "error" in e]


@pytest.fixture
def acme(own_service):
    return own_service.tenant()


def enrolled(service, tenant, *names, versions=1):
    for name in names:
        service.user(tenant, name)
        for seed in range(versions):
            service.publish(tenant.scope, name, "voice", seed=seed)


def started(readers):
    for reader in readers:
        reader.start()
    for reader in readers:
        assert reader.first.wait(120)
    return readers


@pytest.mark.usefixtures("unhurried")
def test_a_delete_under_32_streams_stops_every_token_of_the_user(own_service, acme):
    service = own_service
    enrolled(service, acme, "alice", "bob")
    alice_key = acme.post("/v1/keys", json={"user": "alice"}).json()["api_key"]
    with lasting(service.parts.engine):
        own = started(
            [Reader(service, alice_key if i % 2 else acme.key, "alice:voice", seed=i) for i in range(16)]
        )
        others = started(
            [Reader(service, acme.key, "bob:voice" if i % 2 else "tiny", seed=i) for i in range(16)]
        )
        answer = acme.delete("/v1/users/alice")
        assert service.parts.tickets.count() == len(others)  # theirs had ended when it was acknowledged
        for reader in own:
            reader.join(120)
    assert answer.status_code == 200
    assert answer.json() == {"id": "alice", "object": "user", "deleted": True, "purge": "done"}
    for reader in others:
        reader.join(120)
    for reader in own:
        assert reader.status == 200
        assert reader.texts
        assert [error["code"] for error in reader.errors] == ["model_not_found"]
        assert b"[DONE]" not in reader.data
    for reader in others:
        assert b"[DONE]" in reader.data
        assert not reader.errors
    with service.client(alice_key) as gone:
        assert complete(gone, "alice:voice").status_code == 401
    refused = complete(acme, "alice:voice")
    assert refused.status_code == 404
    assert error_of(refused)["message"] == error_of(complete(acme, "nobody:voice"))["message"].replace(
        "nobody", "alice"
    )


def test_nothing_is_written_to_any_socket_after_the_acknowledgement(own_service, acme, monkeypatch):
    """Seen from inside: every write of every transport, against the moment of the answer's own write."""
    service = own_service
    enrolled(service, acme, "alice")
    log, open_then = [], []
    connections = service.parts.connections
    for_real = connections.add

    def add(protocol, client, transport, loop):
        write = transport.write

        def noted(data):
            log.append((client, bytes(data)))
            if b'"deleted":true' in data:
                open_then.append({ticket.client for ticket in service.parts.tickets.owned()} - {client})
            write(data)

        try:
            transport.write = noted
        except AttributeError:  # a transport with slots
            pytest.skip("this loop's transports cannot be watched")
        return for_real(protocol, client, transport, loop)

    monkeypatch.setattr(connections, "add", add)
    with lasting(service.parts.engine, quick=150):
        readers = started([Reader(service, acme.key, "alice:voice", seed=i) for i in range(24)])
        with service.client(acme.key) as fresh:
            assert fresh.delete("/v1/users/alice").status_code == 200
        for reader in readers:
            reader.join(120)
    assert open_then == [set()]
    done = next(i for i, (_, data) in enumerate(log) if b'"deleted":true' in data)
    after = [data for _, data in log[done + 1 :]]
    assert not [data for data in after if b'"text"' in data]
    before = [data for _, data in log[:done] if b'"text"' in data]
    assert before


def test_a_reader_that_takes_nothing_cannot_hold_the_delete_up(own_service, acme):
    service = own_service
    enrolled(service, acme, "alice")
    stalled = []
    for i in range(4):  # each has far more coming than sockets hold, and reads none of it
        reader = Reader(
            service, acme.key, "alice:voice", tokens=240, receive_buffer=2048, n=60, logprobs=5, seed=i
        )
        stalled.append(reader)
    give_up = time.monotonic() + 120
    while not any(
        transport.get_write_buffer_size() > 0 for transport in service.parts.connections._transports.values()
    ):
        assert time.monotonic() < give_up
        time.sleep(0.05)
    began = time.monotonic()
    answer = acme.delete("/v1/users/alice")
    assert answer.status_code == 200
    assert time.monotonic() - began < 30
    for reader in stalled:
        reader.start()
    for reader in stalled:
        reader.join(120)
        assert b"[DONE]" not in reader.data
    assert service.parts.tickets.count() == 0


@pytest.mark.usefixtures("unhurried")
def test_a_plain_answer_of_a_deleted_prefix_is_404(own_service, acme):
    service = own_service
    enrolled(service, acme, "alice")
    got = []

    def ask():
        with service.client(acme.key) as client:
            got.append(complete(client, "alice:voice", max_tokens=LONG, min_tokens=LONG))

    thread = threading.Thread(target=ask)
    with lasting(service.parts.engine):
        thread.start()
        wait_until(lambda: service.parts.engine.stats().running)
        assert acme.delete("/v1/users/alice").status_code == 200
        thread.join(120)
    assert got[0].status_code == 404
    assert error_of(got[0])["code"] == "model_not_found"


@pytest.mark.usefixtures("unhurried")
def test_deleting_a_prefix_ends_its_rows_and_a_version_that_is_live_stays(own_service, acme):
    service = own_service
    enrolled(service, acme, "alice", versions=2)
    refused = acme.delete("/v1/models/alice:voice@2")
    assert refused.status_code == 409
    assert error_of(refused)["code"] == "version_is_live"
    with lasting(service.parts.engine):
        old, live = started(
            [Reader(service, acme.key, "alice:voice@1"), Reader(service, acme.key, "alice:voice")]
        )
        gone = acme.delete("/v1/models/alice:voice@1")
    assert gone.json() == {"id": "alice:voice@1", "object": "model", "deleted": True, "purge": "done"}
    old.join(120)
    assert old.errors
    live.join(120)
    assert b"[DONE]" in live.data
    with lasting(service.parts.engine):
        (again,) = started([Reader(service, acme.key, "alice:voice")])
        assert acme.delete("/v1/models/alice:voice").status_code == 200
        again.join(120)
    assert again.errors
    assert complete(acme, "alice:voice").status_code == 404
    assert acme.get("/v1/prefixes").json()["data"] == []


def test_task_versions_that_learned_from_the_user_are_retired(own_service, acme):
    service = own_service
    for name in ("alice", "bob"):
        service.user(acme, name)
    files = {name: service.upload(acme, user=name).json()["id"] for name in ("alice", "bob")}
    own = service.upload(acme, task="e2e").json()["id"]
    service.publish(acme.scope, "task:e2e", "e2e", files=[own])
    service.publish(acme.scope, "task:e2e", "e2e", files=[own, files["bob"]], seed=1)
    service.publish(acme.scope, "task:e2e", "e2e", files=[own, files["alice"]], seed=2)
    assert complete(acme, "task:e2e").json()["prefix_version"] == "task:e2e@3"
    assert acme.delete("/v1/users/alice").status_code == 200
    assert complete(acme, "task:e2e").json()["prefix_version"] == "task:e2e@2"
    assert complete(acme, "task:e2e@3").status_code == 404
    assert acme.delete("/v1/users/bob").status_code == 200
    assert complete(acme, "task:e2e").json()["prefix_version"] == "task:e2e@1"


def test_a_deleted_users_tensors_files_and_rows_are_gone(own_service, acme):
    service = own_service
    enrolled(service, acme, "alice", "bob", versions=2)
    for model in ("alice:voice", "alice:voice@1", "bob:voice"):
        assert complete(acme, model).status_code == 200
    (owner,) = [o.owner for o in service.store.owners.list_users(acme.scope) if o.owner.name == "alice"]
    assert any(place.owner_id == owner.owner_id for place, _ in service.store.blobs.places())
    resident = service.parts.engine.stats().resident_prefixes
    assert resident == 3
    assert acme.delete("/v1/users/alice").status_code == 200
    assert service.parts.engine.stats().resident_prefixes == 1
    assert not [place for place, _ in service.store.blobs.places() if place.owner_id == owner.owner_id]
    assert complete(acme, "bob:voice").status_code == 200
    jobs = acme.get("/v1/fine_tuning/jobs?limit=100").json()["data"]
    assert {job["prefix"] for job in jobs} == {"bob:voice"}


def test_a_name_made_anew_has_nothing_of_the_old(own_service, acme):
    service = own_service
    alice = service.user(acme, "alice")
    service.publish(acme.scope, "alice", "voice")
    assert acme.delete("/v1/users/alice").status_code == 200
    again = service.user(acme, "alice")
    assert alice.get("/v1/models").status_code == 401
    assert [m["id"] for m in again.get("/v1/models").json()["data"]] == ["tiny"]
    assert again.get("/v1/files").json()["data"] == []
    assert complete(again, "alice:voice").status_code == 404
    service.publish(acme.scope, "alice", "voice", seed=5)
    assert complete(again, "alice:voice").status_code == 200


@pytest.mark.usefixtures("unhurried")
def test_a_deleted_tenant_is_gone_with_all_its_streams(own_service, acme):
    service = own_service
    other = service.tenant()
    enrolled(service, acme, "alice")
    enrolled(service, other, "alice")
    with lasting(service.parts.engine), service.client("an-admin-key-for-tests") as admin:
        own = started([Reader(service, acme.key, model) for model in ("alice:voice", "tiny")])
        others = started([Reader(service, other.key, "alice:voice")])
        assert admin.delete(f"/v1/tenants/{acme.tenant_id}").json()["deleted"]
    for reader in own + others:
        reader.join(120)
    assert all(reader.errors for reader in own)
    assert b"[DONE]" in others[0].data
    assert acme.get("/v1/models").status_code == 401


def test_a_process_that_does_not_follow_makes_the_answer_202_until_it_is_dead(
    tmp_path, database_url, monkeypatch
):
    monkeypatch.setattr(deletion, "PATIENCE_S", 0.5)
    with serving(tmp_path, database_url) as service:
        acme = service.tenant()
        enrolled(service, acme, "alice")
        # Another serving process that has stopped following: it counts until its beat is too old.
        other = service.store.feed.join("service")
        answer = acme.delete("/v1/users/alice")
        assert answer.status_code == 202
        body = answer.json()
        assert body["deleted"] is False
        assert answer.headers["location"] == f"/v1/erasures/{body['erasure']}"
        assert complete(acme, "alice:voice").status_code == 404
        polled = acme.get(f"/v1/erasures/{body['erasure']}").json()
        assert (polled["state"], polled["deleted"]) == (
            "done",
            False,
        )  # the bytes are gone, the process is not
        with everything(service.store) as connection:
            connection.execute(update(processes).where(processes.c.id == other).values(beat_at=0.0))
        wait_until(lambda: acme.get(f"/v1/erasures/{body['erasure']}").json()["deleted"])


@pytest.mark.usefixtures("unhurried")
def test_an_answer_that_does_not_end_holds_up_its_own_acknowledgement_and_no_other_stream(
    own_service, acme, monkeypatch
):
    service = own_service
    enrolled(service, acme, "alice", "bob")
    file = service.upload(acme, user="alice").json()["id"]
    reading = Hanging(service.parts.store.datasets.read)

    def download():
        with service.client(acme.key) as client, contextlib.suppress(httpx2.TransportError):
            client.get(f"/v1/files/{file}/content")

    monkeypatch.setattr(service.parts.store.datasets, "read", reading)
    monkeypatch.setattr(deletion, "PATIENCE_S", 0.2)
    with lasting(service.parts.engine):
        (stream,) = started([Reader(service, acme.key, "bob:voice")])
        asked = threading.Thread(target=download)
        asked.start()
        assert reading.begun.wait(120)
        assert acme.delete("/v1/users/alice").status_code == 202
        assert acme.delete("/v1/users/bob").status_code == 202
        stream.join(40)  # all of its tokens take 70 s
    assert [error["code"] for error in stream.errors] == ["model_not_found"]
    assert not service.store.feed.acked(service.store.feed.position())
    reading.go_on.set()
    asked.join(120)
    wait_until(lambda: service.store.feed.acked(service.store.feed.position()))


@pytest.mark.usefixtures("unhurried")
def test_a_load_that_hangs_holds_up_no_other_deletion(own_service, acme, monkeypatch):
    service = own_service
    enrolled(service, acme, "alice", "bob")
    with lasting(service.parts.engine):
        (stream,) = started([Reader(service, acme.key, "bob:voice")])
        reading = Hanging(service.parts.store.registry.read)
        monkeypatch.setattr(service.parts.store.registry, "read", reading)
        monkeypatch.setattr(deletion, "PATIENCE_S", 0.2)
        waiting = Reader(service, acme.key, "alice:voice")
        waiting.start()
        assert reading.begun.wait(120)
        assert acme.delete("/v1/users/alice").status_code == 202
        assert acme.delete("/v1/users/bob").status_code == 202
        stream.join(40)  # all of its tokens take 70 s
    assert [error["code"] for error in stream.errors] == ["model_not_found"]
    reading.go_on.set()
    waiting.join(120)
    wait_until(lambda: service.store.feed.acked(service.store.feed.position()))


def test_a_deletion_that_stands_is_not_refused_because_the_database_goes_away_for_a_moment(
    own_service, acme, monkeypatch
):
    service = own_service
    service.user(acme, "alice")
    files = [service.upload(acme, user="alice").json()["id"] for _ in range(2)]
    job = service.claim(acme.scope, "alice", "voice").job_id
    feed = service.parts.store.feed
    acked, away = feed.acked, []

    def restarting(seq):
        if len(away) < 2:
            away.append(seq)
            raise Unavailable("the database does not answer")
        return acked(seq)

    def gone(_seq):
        raise Unavailable("the database does not answer")

    monkeypatch.setattr(feed, "acked", restarting)
    assert acme.delete(f"/v1/files/{files[0]}").status_code == 200
    assert len(away) == 2
    monkeypatch.setattr(feed, "acked", gone)
    monkeypatch.setattr(deletion, "PATIENCE_S", 0.2)
    answer = acme.delete(f"/v1/files/{files[1]}")
    assert (answer.status_code, answer.json()["deleted"]) == (202, False)
    assert acme.get(f"/v1/files/{files[1]}").status_code == 404
    answer = acme.post(f"/v1/fine_tuning/jobs/{job}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


@pytest.mark.usefixtures("unhurried")
def test_two_processes_both_stop_before_the_acknowledgement(tmp_path, database_url):
    with (
        serving(tmp_path, database_url) as one,
        serving(tmp_path, database_url) as two,
    ):
        acme = one.tenant()
        enrolled(one, acme, "alice")
        with lasting(two.parts.engine):
            readers = started([Reader(two, acme.key, "alice:voice", seed=i) for i in range(8)])
            assert acme.delete("/v1/users/alice").status_code == 200
            assert two.parts.tickets.count() == 0
            for reader in readers:
                reader.join(120)
                assert [error["code"] for error in reader.errors] == ["model_not_found"]
        with two.client(acme.key) as elsewhere:
            assert complete(elsewhere, "alice:voice").status_code == 404


@pytest.mark.usefixtures("unhurried")
def test_a_process_that_loses_the_feed_sends_nothing_more(own_service, acme, monkeypatch):
    service = own_service
    enrolled(service, acme, "alice")

    def away(_after):
        raise OSError("the database is away")

    with lasting(service.parts.engine):
        (reader,) = started([Reader(service, acme.key, "alice:voice", tokens=250)])
        monkeypatch.setattr(service.parts._system.feed, "read", away)
        monkeypatch.setattr("service.revocation.STALE_S", STALE_S)
        reader.join(120)
    assert [error["code"] for error in reader.errors] == ["overloaded"]
    wait_until(
        lambda: complete(acme, "tiny").status_code == 503
    )  # a look that was under way may have come back
    refused = complete(acme, "alice:voice")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert service.client(None).get("/readyz").status_code == 503
    monkeypatch.undo()
    give_up = time.monotonic() + 120
    while complete(acme, "alice:voice").status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_an_erasure_cut_half_way_completes_at_the_next_start(tmp_path, database_url):
    first = Serving(tmp_path, database_url)
    first.start()
    acme = first.tenant()
    key, scope = acme.key, acme.scope
    enrolled(first, acme, "alice")
    (owner,) = [view.owner for view in first.store.owners.list_users(scope)]
    first.stop()
    # The commit of the delete, then the power goes.
    cut = Serving(tmp_path, database_url)
    erasure = cut.store.erasure.begin(scope, "alice")
    assert [p for p, _ in cut.store.blobs.places() if p.owner_id == owner.owner_id]
    assert cut.store.erasure.get(scope, erasure.id).state == "purging"
    cut.start()
    try:
        with cut.client(key) as tenant:
            give_up = time.monotonic() + 120
            while not tenant.get(f"/v1/erasures/{erasure.id}").json()["deleted"]:
                assert time.monotonic() < give_up
                time.sleep(0.1)
            assert complete(tenant, "alice:voice").status_code == 404
        assert not [p for p, _ in cut.store.blobs.places() if p.owner_id == owner.owner_id]
    finally:
        cut.stop()


def test_bytes_that_do_not_go_take_few_threads_however_many_deletions_wait_for_them(
    own_service, acme, monkeypatch
):
    service = own_service
    service.user(acme, "alice")
    files = [service.upload(acme, user="alice").json()["id"] for _ in range(8)]
    clearing = Hanging(service.parts.store.erasure.clear)
    monkeypatch.setattr(service.parts.store.erasure, "clear", clearing)
    monkeypatch.setattr(erasing, "PURGE_S", 0.1)
    for file in files:
        answer = acme.delete(f"/v1/files/{file}")
        assert (answer.status_code, answer.json()["purge"]) == (200, "pending")
    assert len(clearing.calls) == 4
    clearing.go_on.set()
    monkeypatch.undo()
    wait_until(lambda: service.parts.removing._value == 4)
    last = service.upload(acme, user="alice").json()["id"]
    assert acme.delete(f"/v1/files/{last}").json()["purge"] == "done"


def test_a_file_goes_and_its_versions_stay_unless_asked(own_service, acme):
    service = own_service
    service.user(acme, "alice")
    files = [service.upload(acme, user="alice").json()["id"] for _ in range(2)]
    for i, file in enumerate(files):
        service.publish(acme.scope, "alice", "voice", files=[file], seed=i)
    assert acme.delete(f"/v1/files/{files[0]}").json()["deleted"]
    assert acme.get(f"/v1/files/{files[0]}").status_code == 404
    assert complete(acme, "alice:voice@1").status_code == 200
    assert acme.delete(f"/v1/files/{files[1]}?versions=true").json()["deleted"]
    assert complete(acme, "alice:voice@2").status_code == 404
    assert complete(acme, "alice:voice").json()["prefix_version"] == "alice:voice@1"


def test_a_cold_load_under_way_is_revoked_too(own_service, acme, monkeypatch):
    service = own_service
    enrolled(service, acme, "alice")
    read, reading, go_on = service.parts.store.registry.read, threading.Event(), threading.Event()

    def slow(resolved):
        data = read(resolved)
        reading.set()
        assert go_on.wait(120)
        return data

    monkeypatch.setattr(service.parts.store.registry, "read", slow)
    reader = Reader(service, acme.key, "alice:voice")
    reader.start()
    assert reading.wait(120)
    threading.Timer(0.5, go_on.set).start()
    assert acme.delete("/v1/users/alice").status_code == 200
    reader.join(120)
    assert reader.status == 404
    assert service.parts.engine.stats().resident_prefixes == 0
