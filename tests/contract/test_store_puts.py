"""A file is sent to an object storage once: what was cut may live on there, and is written anew in another place."""

import http.server
import socket
import struct
import threading

import pytest
from database_making import everything
from obstore.exceptions import AlreadyExistsError
from store_making import complete, files_on_disk, queue, rows, upload

from prefix_store import object_storage, open_store, tables
from prefix_store.crypto import Place
from prefix_store.errors import Unanswered, Unavailable, Unsent
from prefix_store.failpoints import arm


@pytest.fixture(autouse=True)
def bucket_only(store):
    if store._core.database.is_sqlite:
        pytest.skip("a folder takes no PUT")
    yield
    arm("")


def noted(store):
    with everything(store) as connection:
        return {row.object_id for row in connection.execute(tables.intents.select())}


class _Cutting(http.server.BaseHTTPRequestHandler):
    """Takes each PUT whole, then resets it or fails; it has nothing."""

    protocol_version = "HTTP/1.1"

    def do_PUT(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.server.puts += 1
        if self.server.fails:
            self._answer(500, b"<Error><Code>InternalError</Code></Error>")
            return
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def do_GET(self):
        self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.mark.parametrize("fails", [False, True], ids=["reset", "error"])
def test_a_put_that_was_cut_is_not_sent_again(settings, fails):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Cutting) as server:
        server.puts, server.fails = 0, fails
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        cut = open_store(settings.model_copy(update={"blobs_endpoint": endpoint}))
        for sent in (1, 2):
            with pytest.raises(Unanswered):
                cut.blobs.put(Place("ten-a", "own-b", "ver-c"), b"x")
            assert server.puts == sent
        assert not cut.blobs.away()
        cut.close()
        server.shutdown()


def test_an_upload_that_was_cut_is_written_anew_in_another_place_and_the_first_is_waited_for(
    store, tenant, alice
):
    data = rows(*[("a" * 1000, "b" * 1000)] * 1000)
    arm("object.before_put=raise")
    file = upload(store, tenant, alice, data)
    assert store.datasets.read(tenant, file.id) == data
    assert files_on_disk(store) == {file.place}
    (first,) = noted(store)
    assert first != file.id
    assert first.startswith("file-")
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"
    assert files_on_disk(store) == set()


def test_an_upload_whose_answer_was_lost_is_found_and_taken(store, tenant, alice):
    arm("object.after_put=raise")
    file = upload(store, tenant, alice)
    assert files_on_disk(store) == {file.place}
    assert noted(store) == set()


def test_a_checkpoint_and_a_version_that_were_cut_are_written_anew(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    arm("object.before_put=raise")
    store.jobs.save_checkpoint(claim, 1, b"state")
    assert store.jobs.load_checkpoint(claim) == b"state"
    arm("")
    arm("object.before_put=raise")
    assert complete(store, claim, b"kingfisher").promoted
    assert store.registry.read(store.registry.resolve(tenant, "alice:voice")) == b"kingfisher"
    assert len(noted(store)) == 2


def test_a_put_that_met_itself_and_cannot_be_looked_at_stays_noted(store, tenant, alice, monkeypatch):
    def met(*_, **__):
        raise AlreadyExistsError("it is there")

    def unread(place):
        raise Unsent("another thread found that nothing answers")

    monkeypatch.setattr(object_storage.obstore, "put", met)
    monkeypatch.setattr(store.blobs.files, "read", unread)
    with pytest.raises(Unavailable) as raised:
        upload(store, tenant, alice)
    assert not isinstance(raised.value, Unsent)
    assert len(noted(store)) == 1
