"""Credentials of a bucket: looked for anew, so that a rotated key is used by both libraries without a restart."""

import itertools
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import botocore.session
import pytest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from waiting import wait_until

from prefix_store import bucket_credentials, bucket_versions
from prefix_store.bucket_versions import address_of
from prefix_store.crypto import Place
from prefix_store.errors import StoreError
from prefix_store.object_storage import ObjectStorage

NOTHING = b'<ListVersionsResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"></ListVersionsResult>'


class _Door(BaseHTTPRequestHandler):
    """Says yes to everything, and notes whose key each request bears."""

    def do_PUT(self):
        self.rfile.read(int(self.headers["content-length"]))
        self._answer("put", b"")

    def do_GET(self):
        self._answer("list", NOTHING)

    def _answer(self, what, body):
        self.server.seen.append((what, re.search(r"Credential=(\w+)/", self.headers["authorization"])[1]))
        self.send_response(200)
        self.send_header("etag", '"x"')
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def door():
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Door)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Writes the file of credentials, the one place where any are found."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    file = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))

    def write(key):
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")

    return write


def address(server):
    return address_of("s3://bucket/x", f"http://127.0.0.1:{server.server_port}", "us-east-1", 5.0)


def test_a_rewritten_file_of_credentials_is_used_for_files_and_for_versions(
    door, keys, tmp_path, monkeypatch
):
    monkeypatch.setattr(bucket_credentials, "_HOLD_S", 0.0)
    monkeypatch.setattr(bucket_credentials, "_RETRY_S", 0.1)
    keys("OLD")
    storage, count = ObjectStorage(address(door), tmp_path), itertools.count()

    def used():
        door.seen.clear()
        storage.create(Place("ten-a", "own-b", f"ver-{next(count)}"), b"sealed")
        storage.places()
        return door.seen

    assert used() == [("put", "OLD"), ("list", "OLD")]
    keys("NEW")
    wait_until(lambda: used() == [("put", "NEW"), ("list", "NEW")])
    (tmp_path / "credentials").unlink()  # for the moment that somebody writes it
    time.sleep(1.1)
    assert used() == [("put", "NEW"), ("list", "NEW")]
    keys("NEWER")
    wait_until(lambda: used() == [("put", "NEWER"), ("list", "NEWER")])


def test_a_client_is_made_anew_only_when_the_credentials_have_changed(door, keys, monkeypatch):
    keys("OLD")
    access = bucket_versions.Access(address(door))
    first = access.client()
    monkeypatch.setattr(access.credentials, "_until", 0.0)
    assert access.client() is first
    keys("NEW")
    monkeypatch.setattr(access.credentials, "_until", 0.0)
    assert access.client() is not first


def test_who_has_no_credentials_is_told_so_and_may_bring_some(door, keys, tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreError, match="AWS_SHARED_CREDENTIALS_FILE"):
        ObjectStorage(address(door), tmp_path)
    keys("LATE")
    ObjectStorage(address(door), tmp_path).create(Place("ten-a", "own-b", "ver-c"), b"sealed")
    assert door.seen == [("put", "LATE")]


class _Role:
    """Credentials that renew themselves each time they are asked for, or cannot."""

    def __init__(self):
        self.asked, self.away = 0, False

    def get_frozen_credentials(self):
        self.asked += 1
        if self.away:
            raise ClientError({"Error": {"Code": "ExpiredToken"}}, "AssumeRole")
        return Credentials(f"ROLE{self.asked}", "secret").get_frozen_credentials()


@pytest.fixture
def role(monkeypatch):
    found = _Role()
    monkeypatch.setattr(botocore.session.Session, "get_credentials", lambda session: found)
    return found


def test_a_roles_credentials_are_asked_each_time_and_the_last_are_kept_while_they_cannot_be_had(
    role, monkeypatch
):
    credentials = bucket_credentials.BucketCredentials()
    assert [credentials.now().access_key for _ in range(2)] == ["ROLE2", "ROLE3"]
    role.away = True
    assert credentials.now().access_key == "ROLE3"
    assert credentials.left() <= 5.0
    asked = role.asked
    assert credentials.now().access_key == "ROLE3"
    assert role.asked == asked  # not again at once
    role.away = False
    monkeypatch.setattr(credentials, "_until", 0.0)
    assert credentials.now().access_key == f"ROLE{asked + 1}"
    assert credentials.left() > 200.0


def test_a_role_that_is_refused_at_the_start_is_told_in_words(role, door, tmp_path):
    role.away = True
    with pytest.raises(StoreError, match="no credentials"):
        ObjectStorage(address(door), tmp_path)
