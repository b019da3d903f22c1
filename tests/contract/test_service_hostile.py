"""What a hostile tenant, a slow client or a bad moment may not do to anybody else."""

import json
import socket
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
from production_making import everything_kept
from service_making import ADMIN_KEY, complete, error_of, serving
from sqlalchemy.exc import OperationalError
from store_making import rows
from waiting import wait_until

from prefix_store.errors import NoRoom, Unavailable
from prefix_store.ledger import OWN, Ledger
from service.revocation import STALE_S

HALF = "a\ud800"


def post(client, path, body):
    return client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})


@pytest.fixture(scope="module")
def acme(service):
    return service.tenant()


@pytest.fixture(scope="module")
def alice(service, acme):
    alice = service.user(acme, "alice")
    service.publish(acme.scope, "alice", "voice")
    return alice


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (400, {"model": "tiny", "prompt": [None] * 30_000}),
        (400, {"model": "tiny", "prompt": [1.5] * 30_000}),
        (400, {"model": "tiny", "prompt": [[1, "x"]] * 100}),
        (400, {"model": "tiny", "prompt": ["x"] * 4000}),
        (400, {"model": "tiny", "prompt": [1] * 30_000}),
        (400, {"model": "tiny", "prompt": "x" * 1_000_000}),
        (400, {"model": "tiny", "prompt": "x" + '["a"], ' * 100_000}),
        (400, {"model": "tiny", "prompt": "x", "stop": ["x"] * 4000}),
        (400, {"model": "tiny", "prompt": "x", "logit_bias": {str(i): 1 for i in range(4000)}}),
        (400, {"model": "tiny"} | {f"k{i}": 1 for i in range(4000)}),
        (413, {"model": "tiny", "prompt": [1] * 100_000}),
        (413, {"model": "tiny", "prompt": ["x"] * 100_000}),
        (413, {"model": "tiny", "prompt": [[]] * 100_000}),
        (413, {"model": "tiny", "prompt": [{}] * 100_000}),
        (413, {"model": "tiny"} | {f"k{i}": 1 for i in range(50_000)}),
    ],
)
def test_a_large_bad_body_is_refused_at_its_first_fault(alice, status, body):
    """A report of every fault would hold the event loop, and so everybody, for many seconds."""
    began = time.monotonic()
    refused = post(alice, "/v1/completions", body)
    assert refused.status_code == status, refused.text
    assert error_of(refused)["message"]
    assert len(refused.content) < 1000
    assert time.monotonic() - began < 10


def test_many_bodies_of_nothing_but_lists_hold_nobody_up(tmp_path):
    """Each would take twenty times its bytes, and half a second and more of the event loop, when it is read."""
    body = b'{"model": "tiny", "prompt": [%s[]]}' % (b"[]," * 1_380_000)
    with serving(tmp_path, max_body_bytes=4 << 20) as service:
        acme, got = service.tenant(), []

        def ask():
            with service.client(acme.key) as client:
                answer = client.post(
                    "/v1/completions", content=body, headers={"content-type": "application/json"}
                )
                got.append(answer.status_code)

        threads = [threading.Thread(target=ask) for _ in range(14)]
        for thread in threads:
            thread.start()
        longest, anyone = 0.0, service.client(None)
        # what the event loop's thread computes, since the machine may stand still meanwhile
        clock = time.pthread_getcpuclockid(service._thread.ident)
        while any(thread.is_alive() for thread in threads):
            began = time.clock_gettime(clock)
            assert anyone.get("/livez").status_code == 200
            longest = max(longest, time.clock_gettime(clock) - began)
        for thread in threads:
            thread.join(120)
        assert got == [413] * 14
        assert longest < 2
        wait_until(lambda: service.parts.door.bytes.total == 0)
        assert complete(acme, "tiny").status_code == 200


def test_what_a_body_becomes_when_it_is_read_is_shared_like_bodies(own_service):
    """A number takes up to twelve times its bytes, for as long as its request is under way."""
    acme, heavy = own_service.tenant(), {"model": "tiny", "prompt": [[5] * 200] * 100}
    door, seen = own_service.parts.door, []
    grow = door.grow

    def watched(visit, more):
        grow(visit, more)
        seen.append((visit.held, door.bytes.total))

    door.grow = watched
    length = len(json.dumps(heavy))
    assert post(acme, "/v1/completions", heavy | {"max_tokens": 1}).status_code == 200
    ((held, total),) = seen
    assert held == total > length + 36 * 19_900
    wait_until(lambda: door.bytes.total == 0)
    door.bytes.bound = 4 * length
    refused = post(acme, "/v1/completions", heavy)
    assert (refused.status_code, error_of(refused)["code"]) == (429, "too_many_requests")
    assert "retry-after" in refused.headers
    wait_until(lambda: door.bytes.held(acme.tenant_id) == 0)


class Watched:
    """A tokenizer that notes what it encodes, after `before` was called with it."""

    def __init__(self, tokenizer, before=lambda text: None):
        self._tokenizer, self._before, self.encoded = tokenizer, before, []

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def encode(self, text):
        self.encoded.append(text)
        self._before(text)
        return self._tokenizer.encode(text)


def watch(service, *before):
    base = service.parts.base
    service.parts.base = replace(base, tokenizer=Watched(base.tokenizer, *before))
    return service.parts.base.tokenizer.encoded


def test_of_many_prompts_that_cannot_be_served_the_first_alone_is_encoded(own_service):
    encoded = watch(own_service)
    most = own_service.base.config.positions
    refused = complete(own_service.tenant(), "tiny", ["x" * most] * 128)
    assert (refused.status_code, error_of(refused)["code"]) == (400, "context_length_exceeded")
    assert encoded == ["x" * most]


def test_a_tenant_whose_prompts_take_long_to_encode_leaves_a_thread_for_others(own_service):
    service, go_on = own_service, threading.Event()
    encoded = watch(service, lambda text: text == "long" and go_on.wait(120))
    acme, other, got = service.tenant(), service.tenant(), []

    def ask():
        with service.client(acme.key) as client:
            got.append(complete(client, "tiny", "long").status_code)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    try:
        for thread in threads:
            thread.start()
        wait_until(lambda: service.parts.door._inside[acme.tenant_id] == 6 and encoded)
        assert complete(other, "tiny", "short").status_code == 200
        assert encoded == ["long", "short"]
    finally:
        go_on.set()
        for thread in threads:
            thread.join(120)
    assert got == [200] * 6


def test_a_body_in_another_encoding_is_refused_before_it_is_read(alice):
    body = json.dumps({"model": "tiny", "prompt": "hello", "max_tokens": 1})
    headers = {"content-type": "application/json"}
    for encoding, status in (("utf-8", 200), ("utf-16", 400), ("utf-16-le", 400), ("utf-32", 400)):
        answer = alice.post("/v1/completions", content=body.encode(encoding), headers=headers)
        assert answer.status_code == status
        assert status == 200 or error_of(answer)["code"] == "invalid_json"


HALVES = [
    ("/v1/completions", {"model": "tiny", "prompt": HALF}),
    ("/v1/completions", {"model": "tiny", "prompt": ["x", HALF]}),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "stop": HALF}),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "user": HALF}),
    ("/v1/completions", {"model": HALF, "prompt": "x"}),
    ("/v1/completions", {"model": "tiny", "prompt": "x", HALF: 1}),
    ("/v1/completions", {"model": "tiny", "prompt": "x", "logit_bias": {HALF: 1}}),
    ("/v1/fine_tuning/jobs", {"hyperparameters": {"init_text": HALF}}),
    ("/v1/fine_tuning/jobs", {"hyperparameters": {HALF: 1}}),
    ("/v1/fine_tuning/jobs", {"method": {"supervised": {"hyperparameters": {"init_text": HALF}}}}),
    ("/v1/fine_tuning/jobs", {"metadata": {"k": HALF}}),
    ("/v1/fine_tuning/jobs", {"metadata": {HALF: "v"}}),
    ("/v1/fine_tuning/jobs", {"suffix": HALF}),
    ("/v1/fine_tuning/jobs", {"training_file": HALF}),
    ("/v1/fine_tuning/jobs", {"training_file": "file\x00"}),
    ("/v1/fine_tuning/jobs", {"validation_file": "file\x00"}),
    ("/v1/fine_tuning/jobs", {"hyperparameters": {"init_text": "a\x00b"}}),
]


@pytest.mark.parametrize(("path", "change"), HALVES)
def test_half_a_character_is_refused_and_nothing_of_it_is_kept(service, alice, path, change):
    body = change
    if path.endswith("jobs"):
        file = service.upload(alice).json()["id"]
        body = {"model": "tiny", "training_file": file, "suffix": "v"} | change
    refused = post(alice, path, body)
    assert refused.status_code == 400
    assert error_of(refused)["message"]
    assert alice.get("/v1/fine_tuning/jobs").status_code == 200


def test_a_neighbours_backlog_is_no_reason_to_refuse(own_service):
    """Tenants share the batch fairly: a full queue of one makes its own wait long, not another's."""
    service = own_service
    greedy, modest = service.tenant(), service.tenant()
    step = service.parts.engine._loop._runner.step

    def slow(plan):
        time.sleep(0.05)
        return step(plan)

    service.parts.engine._loop._runner.step = slow
    asked = {"model": "tiny", "prompt": ["x"] * 64, "max_tokens": 200, "min_tokens": 200}
    threads = [
        threading.Thread(target=lambda: service.client(greedy.key).post("/v1/completions", json=asked))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    time.sleep(3)  # long enough for the speed to be measured
    assert complete(modest, "tiny", max_tokens=1).status_code == 200
    late = greedy.post("/v1/completions", json=asked | {"prompt": "x"}, headers={"x-deadline-seconds": "2"})
    assert late.status_code == 503
    service.parts.engine._loop._runner.step = step
    for thread in threads:
        thread.join(120)


def test_a_reader_that_is_slow_but_reads_gets_all_of_its_file(tmp_path, monkeypatch):
    """Patience with it would be over many times, by a clock that what it takes moves on."""
    got = bytearray()
    clock = SimpleNamespace(monotonic=lambda: len(got) / (96 << 10) * 30.0)
    monkeypatch.setattr("service.connection.time", clock)
    monkeypatch.setattr("service.connections._CUT_LOOK_S", 0.02)
    with serving(tmp_path, stall_seconds=30) as service:
        acme = service.tenant()
        service.user(acme, "alice")
        data = b"".join(b'{"prompt": "%d", "completion": "%s"}\n' % (i, b"x" * 900) for i in range(4000))
        file = service.upload(acme, data, user="alice").json()["id"]
        with socket.socket() as raw:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
            raw.connect(("127.0.0.1", service.port))
            head = f"GET /v1/files/{file}/content HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
            raw.sendall(f"{head}authorization: Bearer {acme.key}\r\n\r\n".encode())
            while piece := raw.recv(1 << 14):
                got += piece
                time.sleep(0.01)
        assert got.endswith(data)
        assert service.parts.tickets.count() == 0


def test_a_reader_that_stalls_is_cut_off(tmp_path):
    data = rows(("p" * 50, "c" * 900)) * 9000
    with serving(tmp_path) as service:
        acme = service.tenant()
        service.user(acme, "alice")
        file = service.upload(acme, data, user="alice").json()["id"]
        key = acme.key
    with serving(tmp_path, stall_seconds=1) as service, slow_reader(service, key, file) as raw:
        assert raw.recv(12).endswith(b" 200")
        wait_until(lambda: not service.parts.tickets.count())
        assert rest(raw) < len(data)


def test_a_tenant_cannot_fill_memory_with_stalled_downloads(own_service):
    service = own_service
    acme = service.tenant()
    service.user(acme, "alice")
    file = service.upload(acme, rows(("p" * 50, "c" * 900)) * 9000, user="alice").json()["id"]
    sockets = [slow_reader(service, acme.key, file) for _ in range(12)]
    statuses = [int(raw.recv(12).split()[1]) for raw in sockets]
    assert statuses.count(200) == 8
    assert statuses.count(429) == 4
    assert complete(acme, "tiny").status_code == 200
    for raw in sockets:
        raw.close()


def test_all_tenants_together_cannot_fill_memory_with_stalled_downloads(tmp_path):
    data = rows(("p" * 50, "c" * 900)) * 9000
    with serving(tmp_path, sent_bytes=4 * len(data), store={"max_upload_bytes": len(data)}) as service:
        tenants = [service.tenant(f"tenant {n}") for n in range(3)]
        files = []
        for tenant in tenants:
            service.user(tenant, "alice")
            files.append(service.upload(tenant, data, user="alice").json()["id"])

        def asked(n):
            raw = slow_reader(service, tenants[n].key, files[n])
            return raw, int(raw.recv(12).split()[1])

        (first, one), (second, two), (third, three), (fourth, other) = (asked(n) for n in (0, 0, 0, 1))
        assert (one, two, other) == (200, 200, 200)
        assert three == 429  # what is left is for others
        refused = tenants[2].get(f"/v1/files/{files[2]}/content")
        assert (refused.status_code, error_of(refused)["code"]) == (503, "overloaded")
        assert "retry-after" in refused.headers
        assert service.parts.tickets.files.total == 3 * len(data)
        for tenant in tenants:  # what is no download goes on, also of who holds more than its part by now
            assert complete(tenant, "tiny").status_code == 200
            assert service.upload(tenant, rows(("p", "c")) * 20, user="alice").status_code == 200
        for raw in (first, second, third, fourth):
            raw.close()
        give_up = time.monotonic() + 60
        while (again := tenants[2].get(f"/v1/files/{files[2]}/content")).status_code != 200:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert again.content == data


def test_an_upload_under_way_ends_with_its_owner(own_service):
    service = own_service
    acme = service.tenant()
    alice = service.user(acme, "alice")
    part = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + rows(("p", "c" * 900)) * 800
    )
    with socket.create_connection(("127.0.0.1", service.port)) as raw:
        head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
        raw.sendall(
            f"{head}content-length: 5000000\r\nauthorization: Bearer {alice.key}\r\n\r\n".encode() + part
        )
        give_up = time.monotonic() + 120
        while service.parts.tickets.count() == 0:
            assert time.monotonic() < give_up
            time.sleep(0.02)
        assert acme.delete("/v1/users/alice").json()["deleted"]
        assert everything_kept(service.store) == []
        assert service.parts.tickets.count() == 0


def test_an_upload_that_stalls_is_given_up(tmp_path):
    with serving(tmp_path, stall_seconds=1) as service:
        acme = service.tenant()
        alice = service.user(acme, "alice")
        with socket.create_connection(("127.0.0.1", service.port)) as raw:
            head = "POST /v1/files HTTP/1.1\r\nhost: x\r\ncontent-type: multipart/form-data; boundary=b\r\n"
            raw.sendall(
                f"{head}content-length: 5000\r\nauthorization: Bearer {alice.key}\r\n\r\n--b\r\n".encode()
            )
            raw.settimeout(120)
            assert raw.recv(100).startswith(b"HTTP/1.1 408 ")


LONG_FILE = rows(("p" * 50, "c" * 900)) * 30_000


def slow_reader(service, key, file):
    """A connection that has asked for a file's bytes and takes few at a time."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect(("127.0.0.1", service.port))
    raw.sendall(
        f"GET /v1/files/{file}/content HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\r\n".encode()
    )
    raw.settimeout(120)
    return raw


def rest(raw):
    """How many bytes come until the other side ends or cuts the connection."""
    got = 0
    try:
        while piece := raw.recv(1 << 20):
            got += len(piece)
    except ConnectionResetError:
        pass
    return got


def test_deleting_a_file_stops_its_own_transfer(own_service):
    service = own_service
    acme = service.tenant()
    service.user(acme, "alice")
    file = service.upload(acme, LONG_FILE, user="alice").json()["id"]
    with slow_reader(service, acme.key, file) as raw:
        got = len(raw.recv(1000))
        assert acme.delete(f"/v1/files/{file}").json()["deleted"]
        got += rest(raw)
    assert got < len(LONG_FILE)


def test_deleting_a_file_stops_its_transfers_in_other_processes(tmp_path, database_url):
    with serving(tmp_path, database_url) as one, serving(tmp_path, database_url) as two:
        acme = one.tenant()
        one.user(acme, "alice")
        file = one.upload(acme, LONG_FILE, user="alice").json()["id"]
        with slow_reader(two, acme.key, file) as raw:
            got = len(raw.recv(1000))
            assert acme.delete(f"/v1/files/{file}").json()["deleted"]
            assert two.parts.tickets.count() == 0
            got += rest(raw)
        assert got < len(LONG_FILE)


@pytest.mark.usefixtures("soon_blind")
def test_a_process_that_reads_but_cannot_beat_falls_silent_unless_the_disk_is_full(own_service, monkeypatch):
    service = own_service
    acme = service.tenant()
    feed, error = service.parts._system.feed, NoRoom()

    def away(*_):
        raise error

    monkeypatch.setattr(feed, "beat", away)
    until = time.monotonic() + 2 * STALE_S
    while time.monotonic() < until:
        assert complete(acme, "tiny").status_code == 200
        time.sleep(0.1)
    error = Unavailable("read-only")
    for undo, status in ((lambda: None, 503), (monkeypatch.undo, 200)):
        undo()
        give_up = time.monotonic() + 120
        while complete(acme, "tiny").status_code != status:
            assert time.monotonic() < give_up
            time.sleep(0.1)


def test_a_key_is_good_though_its_day_of_use_cannot_be_written(own_service, monkeypatch):
    service = own_service
    acme = service.tenant()

    def full(*_):
        raise NoRoom

    monkeypatch.setattr(service.parts._system.keys, "_used", full)
    assert complete(acme, "tiny").status_code == 200


def test_a_ledger_of_other_secrets_stops_deletions_alone_and_says_who_mends_it(own_service, caplog):
    acme = own_service.tenant()
    own_service.user(acme, "alice")
    own_service.publish(acme.scope, "alice", "voice")
    folder = own_service.store.settings.ledger_folder
    Ledger(folder, b"q" * 32).append("dataset.deleted", "another tenant", "another file", 1000.0)
    answer = acme.delete("/v1/users/alice")
    assert (answer.status_code, error_of(answer)["code"]) == (503, "overloaded")
    assert "the operator must mend it" in error_of(answer)["message"]
    assert str(folder) not in answer.text
    assert answer.headers["retry-after"] == "30"
    assert "ends with an entry of another pepper" in caplog.text
    assert complete(acme, "alice:voice").status_code == 200
    (folder / OWN).unlink()
    assert acme.delete("/v1/users/alice").status_code in {200, 202}
    assert complete(acme, "alice:voice").status_code == 404


@pytest.mark.usefixtures("soon_blind")
def test_a_process_that_is_blind_cuts_off_even_who_does_not_read(tmp_path, database_url, monkeypatch):
    """What lies in its transports of a user that another process deleted is thrown away, not sent later."""
    dead = {"process_dead_after": 15.0}
    with (
        serving(tmp_path, database_url, store=dead) as one,
        serving(tmp_path, database_url, store=dead) as two,
    ):
        acme = one.tenant()
        one.user(acme, "alice")
        one.publish(acme.scope, "alice", "voice")
        file = one.upload(acme, LONG_FILE, user="alice").json()["id"]
        raw = slow_reader(two, acme.key, file)
        give_up = time.monotonic() + 120
        while not any(t.get_write_buffer_size() for t in two.parts.connections._transports.values()):
            assert time.monotonic() < give_up
            time.sleep(0.02)

        def away(_after):
            raise OSError("the database is away")

        monkeypatch.setattr(two.parts._system.feed, "read", away)
        monkeypatch.setattr(two.parts._system.feed, "beat", away)
        answer = acme.delete("/v1/users/alice").json()
        while not answer["deleted"]:
            assert time.monotonic() < give_up
            time.sleep(0.1)
            answer = acme.get(f"/v1/erasures/{answer.get('erasure') or answer['id']}").json()
        assert not any(t.get_write_buffer_size() for t in two.parts.connections._transports.values())
        assert two.parts.tickets.count() == 0
        raw.close()
        with two.client(acme.key) as blind:
            assert blind.get("/v1/models").status_code == 503  # whose key it is may never be answered
            assert complete(blind, "tiny").status_code == 503


def test_a_process_whose_revocation_fails_stands_aside_and_ends(own_service, monkeypatch):
    """It sends nothing more, says that it is ill, holds nobody's deletion up, and is gone for its supervisor to see."""
    service, statuses = own_service, []
    monkeypatch.setattr(service.parts.watchdog, "_end", statuses.append)  # the process is the test's own
    acme = service.tenant()
    service.user(acme, "alice")
    service.publish(acme.scope, "alice", "voice")
    assert complete(acme, "alice:voice").status_code == 200

    def broken(_ids):
        raise RuntimeError("the engine is gone")

    monkeypatch.setattr(service.parts.engine, "begin_revocation", broken)
    acme.delete("/v1/users/alice")
    give_up = time.monotonic() + 120
    while service.client(None).get("/livez").status_code != 503:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert complete(acme, "tiny").status_code == 503
    while not service.store.feed.acked(service.store.feed.position()) or not statuses:
        assert time.monotonic() < give_up
        time.sleep(0.05)
    assert statuses == [75]


def test_fields_that_come_after_the_file_cannot_change_whose_it_is(service, acme, alice):
    def pieces(*parts):
        for part in (*parts, b"--b--\r\n"):
            yield part
            time.sleep(0.05)

    def field(name, value):
        return f'--b\r\ncontent-disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()

    file = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\n'
        + rows(("a", "b"))
        + b"\r\n"
    )
    headers = {"content-type": "multipart/form-data; boundary=b"}
    before = len(acme.get("/v1/files").json()["data"])
    purpose = field("purpose", "fine-tune")
    for client, parts, status in (
        (alice, (purpose, file, field("user", "bob")), 404),
        (alice, (purpose, file, field("task", "e2e")), 403),
        (acme, (purpose, field("user", "alice"), file, field("task", "other")), 400),
    ):
        refused = client.post("/v1/files", content=pieces(*parts), headers=headers)
        assert refused.status_code == status, refused.text
    assert len(acme.get("/v1/files").json()["data"]) == before
    good = alice.post("/v1/files", content=pieces(purpose, file, field("user", "alice")), headers=headers)
    assert good.status_code == 200


def test_a_boundary_that_no_form_may_have_is_400(alice):
    headers = {"content-type": f"multipart/form-data; boundary={'b' * 300}"}
    assert alice.post("/v1/files", content=b"x", headers=headers).status_code == 400


def test_the_same_name_asked_for_by_many_is_made_once(service):
    got = []

    def make():
        with service.client(ADMIN_KEY) as admin:
            got.append(admin.post("/v1/tenants", json={"name": "wanted by many"}).status_code)

    threads = [threading.Thread(target=make) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert sorted(got) == [200] + [409] * 11


def test_a_database_that_is_away_is_503_with_a_time_to_come_again(own_service, monkeypatch):
    acme = own_service.tenant()
    engine = own_service.parts.store._core.database.engine

    def away(*_args, **_kwargs):
        raise OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

    monkeypatch.setattr(type(engine), "connect", away)
    refused = complete(acme, "tiny")
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    with pytest.raises(Unavailable):
        own_service.parts._system.ping()
    monkeypatch.undo()
    give_up = time.monotonic() + 120
    while complete(acme, "tiny").status_code != 200:
        assert time.monotonic() < give_up
        time.sleep(0.1)


def test_more_rows_than_may_ever_wait_are_400_and_not_tried_again(service):
    small = service.tenant(max_queued=2)
    refused = complete(small, "tiny", n=3, temperature=1)
    assert refused.status_code == 400
    assert error_of(refused)["param"] == "n"


def test_a_quota_counts_what_is_asked_for_and_says_when_it_ends(service):
    small = service.tenant(tokens_per_day=30)
    got = []

    def ask():
        with service.client(small.key) as client:
            got.append(complete(client, "tiny", max_tokens=200, min_tokens=200))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    refused = [answer for answer in got if answer.status_code == 429]
    assert len(refused) == 7
    assert all(0 < int(answer.headers["retry-after"]) <= 86400 for answer in refused)


def test_best_of_does_not_prefer_the_empty_answer(service, alice):
    """An end token has a probability like any other; an answer of nothing else is not the likeliest for free."""
    end = service.base.config.end_id
    asked = {"temperature": 1, "logprobs": 0, "logit_bias": {str(end): 8}, "max_tokens": 6, "prompt": [5]}
    empties = 0
    for seed in range(12):
        single = complete(alice, "tiny", n=6, seed=seed, **asked).json()["choices"]
        if not (any(c["text"] == "" for c in single) and any(c["text"] for c in single)):
            continue
        best = complete(alice, "tiny", best_of=6, seed=seed, **asked).json()["choices"][0]
        echoed = complete(alice, "tiny", best_of=6, seed=seed, echo=True, **asked).json()["choices"][0]
        assert echoed["text"].removeprefix("\x05") == best["text"]
        empties += best["text"] == ""
    assert empties < 12


def test_a_failed_request_costs_no_tokens(service, acme):
    frank = service.user(acme, "frank")
    service.publish(acme.scope, "frank", "bad", prefix=b"no tensors")
    for _ in range(3):
        assert complete(frank, "frank:bad").status_code == 500
    assert frank.get("/v1/usage").json()["data"] == []


def test_a_start_of_another_owner_is_told_by_the_name_that_was_sent(service, acme, alice):
    bob = service.user(acme, "bob")
    service.publish(acme.scope, "bob", "voice")
    file = service.upload(bob).json()["id"]
    body = {"model": "alice:voice", "training_file": file, "prefix": "bob:voice"}
    refused = acme.post("/v1/fine_tuning/jobs", json=body)
    assert refused.status_code == 404
    assert "'alice:voice'" in error_of(refused)["message"]


def test_methods_that_nobody_knows_make_no_new_series(service):
    with service.client(None) as nobody:
        for i in range(20):
            nobody.request(f"ABC{chr(65 + i)}", "/v1/models")
    from prometheus_client import generate_latest  # noqa: PLC0415

    text = generate_latest(service.parts.telemetry.registry).decode()
    assert "ABC" not in text
    assert 'method="other"' in text
