"""An object storage instead of local files: written once, removed whole, and away now and then. The database is SQLite."""

import secrets
import time
from urllib.parse import urlsplit

import pytest
from botocore.exceptions import ClientError
from outside_servers import Way
from production_making import REGION, bucket, damage, everything_kept, sealed
from service_making import complete, error_of, serving
from store_making import complete as publish_claimed
from store_making import files_on_disk, publish, queue, upload
from waiting import wait_until

from prefix_store import StoreSettings, bucket_versions, open_store
from prefix_store.bucket_versions import address_of, make_bucket
from prefix_store.crypto import Place
from prefix_store.errors import Corrupt, StoreError, Unavailable
from service import erasing

PLACE = Place("ten-a", "own-b", "ver-c")


@pytest.fixture
def where():
    """Settings of an empty piece of a bucket that keeps versions."""
    name, endpoint, _ = bucket()
    url = f"s3://{name}/{secrets.token_hex(6)}"
    return {"blobs_url": url, "blobs_endpoint": endpoint, "blobs_region": REGION}


@pytest.fixture
def settings(tmp_path, where):
    return StoreSettings(data_dir=tmp_path, **where)


@pytest.fixture
def way(where):
    """A way to the object storage that can be cut; it is open at first."""
    with Way(urlsplit(where["blobs_endpoint"]).port) as made:
        where |= {"blobs_endpoint": f"http://127.0.0.1:{made.port}", "blobs_timeout_seconds": 30.0}
        yield made


def test_a_file_is_never_written_over(store):
    sha256 = store.blobs.put(PLACE, b"first")
    with pytest.raises(FileExistsError):
        store.blobs.put(PLACE, b"second")
    assert store.blobs.read(PLACE, sha256) == b"first"


def test_a_file_whose_answer_was_lost_is_sent_again_and_taken(store):
    sha256 = store.blobs.put(PLACE, b"first")
    store.blobs.files.create(PLACE, sealed(store, PLACE))
    assert store.blobs.read(PLACE, sha256) == b"first"


def test_what_the_store_spoils_or_loses_is_refused(store):
    sha256 = store.blobs.put(PLACE, b"text of somebody")
    assert b"somebody" not in sealed(store, PLACE)
    for change in (lambda data: data[:-1] + bytes([data[-1] ^ 1]), lambda data: data[:20]):
        damage(store, PLACE, change)
        with pytest.raises(Corrupt):
            store.blobs.read(PLACE, sha256)
    store.blobs.delete(PLACE)
    with pytest.raises(Corrupt, match="missing"):
        store.blobs.read(PLACE, sha256)


def answers_again(store):
    """Once the breaker has tried again."""
    give_up = time.monotonic() + 120
    while True:
        try:
            return store.blobs.places()
        except Unavailable:
            assert time.monotonic() < give_up
            time.sleep(0.05)


def begin_upload(store, place):
    name, _, client = bucket()
    key = store.blobs.files._key(place)
    begun = client.create_multipart_upload(Bucket=name, Key=key)
    client.upload_part(Bucket=name, Key=key, UploadId=begun["UploadId"], PartNumber=1, Body=b"part")


def hide(store, place):
    """What a plain DELETE does to a bucket that keeps versions."""
    name, _, client = bucket()
    client.delete_object(Bucket=name, Key=store.blobs.files._key(place))


def test_a_removal_takes_every_version_and_unfinished_upload_and_nobody_elses(store):
    beside = [Place("ten-a", "own-b", "ver-cd"), Place("ten-a", "own-bc", "ver-c")]
    for place in (PLACE, *beside):
        store.blobs.put(place, b"one")
        damage(store, place, lambda data: data + b"two")
        begin_upload(store, place)
    hide(store, PLACE)
    kept = len(everything_kept(store))
    store.blobs.delete(PLACE)
    assert files_on_disk(store) == set(beside)
    assert len(everything_kept(store)) == kept - 4
    store.blobs.delete_owner("ten-a", "own-b")
    assert files_on_disk(store) == {beside[1]}
    store.blobs.delete_owner("ten-a", "own-bc")
    assert everything_kept(store) == []


def test_what_the_store_refuses_to_remove_keeps_nothing_else_of_an_owner(store, monkeypatch):
    held, *others = (Place("ten-a", "own-b", f"ver-{name}") for name in "abc")
    for place in (held, *others):
        store.blobs.put(place, b"one")
        begin_upload(store, place)
    versions = store.blobs.files._versions
    client = versions._access.client()
    remove, end = client.delete_objects, client.abort_multipart_upload
    key = store.blobs.files._key(held)

    def refused(**asked):
        if asked["Delete"]["Objects"][0]["Key"] == key:
            return {"Errors": [{"Key": key, "Code": "AccessDenied"}]}
        return remove(**asked)

    def not_ended(**asked):
        if asked["Key"] == key:
            raise ClientError({"Error": {"Code": "AccessDenied"}}, "AbortMultipartUpload")
        return end(**asked)

    monkeypatch.setattr(bucket_versions, "_AT_ONCE", 1)
    monkeypatch.setattr(client, "delete_objects", refused)
    monkeypatch.setattr(client, "abort_multipart_upload", not_ended)
    with pytest.raises(Unavailable):
        store.blobs.delete_owner("ten-a", "own-b")
    assert everything_kept(store) == [key, key]
    with pytest.raises(Unavailable):
        store.blobs.delete(held)
    monkeypatch.undo()
    store.blobs.delete_owner("ten-a", "own-b")
    assert everything_kept(store) == []


def test_a_sweep_finds_what_was_only_hidden_and_ends_old_uploads(store, tenant, alice):
    kept = upload(store, tenant, alice)
    lost = Place(tenant.tenant_id, alice.owner_id, "ver-lost")
    store.blobs.put(lost, b"lost")
    hide(store, lost)
    begin_upload(store, lost)
    store.janitor.sweep(grace_seconds=3600)
    assert len(everything_kept(store)) == 3  # moto says of every upload that it is of 2010
    assert store.janitor.sweep(grace_seconds=-1000) == 1
    assert files_on_disk(store) == {kept.place}
    assert len(everything_kept(store)) == 1


def test_a_clock_that_is_ahead_sweeps_nothing_that_may_be_on_its_way(store, tenant, alice, monkeypatch):
    coming = Place(tenant.tenant_id, alice.owner_id, "file-coming")
    store.blobs.put(coming, b"its row is about to be written")
    right = time.clock_gettime
    monkeypatch.setattr(time, "clock_gettime", lambda clock: right(clock) + 2 * 3600)
    assert store.janitor.sweep() == 0
    assert files_on_disk(store) == {coming}
    ((_, age),) = store.blobs.places()
    assert -1 <= age < 600


def test_an_erasure_leaves_no_version_of_anything(store, tenant, alice):
    publish(store, tenant, alice, "voice", b"kingfisher")
    for place in files_on_disk(store):
        damage(store, place, lambda data: data + b"again")
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "done"
    assert everything_kept(store) == []


def test_while_the_store_is_away_nothing_is_lost_and_later_it_works(way, store, tenant, alice):
    old = publish(store, tenant, alice, "voice", b"old")
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"state")
    resolved = store.registry.resolve(tenant, "alice:voice")
    before = files_on_disk(store)
    way.cut()
    for act in (
        lambda: store.registry.read(resolved),
        lambda: upload(store, tenant, alice),
        lambda: store.jobs.load_checkpoint(claim),
        lambda: store.jobs.save_checkpoint(claim, 2, b"newer"),
        lambda: publish_claimed(store, claim, b"new"),
        store.janitor.sweep,
    ):
        with pytest.raises(Unavailable, match="object storage"):
            act()
    assert store.jobs.get(tenant, claim.job_id).status == "running"
    assert store.registry.resolve(tenant, "alice:voice").version_id == old.version_id
    way.open()
    answers_again(store)
    assert store.registry.read(resolved) == b"old"
    assert store.jobs.load_checkpoint(claim) == b"state"
    assert files_on_disk(store) == before
    assert publish_claimed(store, claim, b"new").promoted


def test_what_is_deleted_while_the_store_is_away_is_removed_later(way, store, tenant, alice):
    publish(store, tenant, alice, "voice")
    way.cut()
    store.registry.delete_prefix(tenant, "alice:voice")
    erasure = store.erasure.begin(tenant, "alice")
    with pytest.raises(Unavailable):
        store.erasure.resume()
    way.open()
    answers_again(store)
    assert everything_kept(store)
    assert store.erasure.resume() == 0
    assert store.erasure.get(tenant, erasure.id).state == "done"
    assert everything_kept(store) == []


def test_a_store_that_does_not_answer_is_given_up(way, store, settings):
    sha256 = store.blobs.put(PLACE, b"x")
    hasty = open_store(settings.model_copy(update={"blobs_timeout_seconds": 2.0}))
    way.mute()
    for act in (
        lambda: hasty.blobs.read(PLACE, sha256),
        lambda: hasty.blobs.put(Place("ten-a", "own-b", "ver-d"), b"y"),
        lambda: hasty.blobs.delete(PLACE),
    ):
        with pytest.raises(Unavailable):
            act()
    hasty.close()
    way.cut()  # a way that was muted keeps silent on its old connections
    way.open()
    answers_again(store)
    assert store.blobs.read(PLACE, sha256) == b"x"


def test_a_bucket_that_is_not_there_is_no_missing_file(where, tmp_path):
    store = open_store(StoreSettings(data_dir=tmp_path, **where))
    sha256 = store.blobs.put(PLACE, b"x")
    elsewhere = where | {"blobs_url": "s3://prefixserve-test-of-nobody"}
    lost = open_store(StoreSettings(data_dir=tmp_path, **elsewhere))
    for act in (
        lambda: lost.blobs.read(PLACE, sha256),
        lambda: lost.blobs.put(PLACE, b"x"),
        lambda: lost.blobs.delete(PLACE),
        lost.blobs.places,
    ):
        with pytest.raises(Unavailable):
            act()
    lost.close()
    store.close()


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_bucket_is_made_once_and_then_there_for_a_store(where, tmp_path, region):
    name, endpoint = f"prefixserve-made-{secrets.token_hex(6)}", where["blobs_endpoint"]
    address = address_of(f"s3://{name}/main", endpoint, region, 20.0)
    make_bucket(address)
    settings = {"blobs_url": f"s3://{name}/main", "blobs_endpoint": endpoint, "blobs_region": region}
    store = open_store(StoreSettings(data_dir=tmp_path, **settings))
    sha256 = store.blobs.put(PLACE, b"kept")
    make_bucket(address)  # as every start of the compose file does
    assert store.blobs.read(PLACE, sha256) == b"kept"
    store.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"blobs_url": "https://bucket/x"},
        {"blobs_url": "s3://"},
        {"blobs_url": "s3://key:hunter2@bucket/x"},
        {"blobs_url": "s3://bucket", "blobs_endpoint": "localhost:9000"},
    ],
)
def test_an_address_that_cannot_be_right_stops_the_start(tmp_path, wrong):
    with pytest.raises(StoreError, match="PREFIX_BLOBS") as caught:
        open_store(StoreSettings(data_dir=tmp_path, **wrong))
    assert "hunter2" not in str(caught.value)


def test_without_credentials_the_start_says_which_are_missing(tmp_path, where, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(StoreError, match="AWS_ACCESS_KEY_ID"):
        open_store(StoreSettings(data_dir=tmp_path, **where, blobs_timeout_seconds=7.0))


def test_a_service_answers_503_while_the_store_is_away_and_serves_afterwards(way, where, tmp_path):
    with serving(tmp_path, store=where) as service:
        acme = service.tenant()
        service.user(acme, "alice")
        service.publish(acme.scope, "alice", "voice")
        for opened in (
            service.store,
            service.parts.store,
        ):  # the wait for what was refused and may still come
            opened.blobs.files.late_seconds = 1.0
        way.cut()
        for refused in (complete(acme, "alice:voice"), service.upload(acme, user="alice")):
            assert refused.status_code == 503
            assert error_of(refused)["code"] == "overloaded"
            assert "retry-after" in refused.headers
        assert complete(acme, "tiny").status_code == 200
        way.open()
        answers_again(service.parts.store)
        assert complete(acme, "alice:voice").status_code == 200
        assert service.upload(acme, user="alice").status_code == 200
        way.cut()
        assert complete(acme, "alice:voice").status_code == 200  # it is in memory
        gone = acme.delete("/v1/users/alice")
        assert gone.status_code == 200  # nobody is served it; but its bytes are there
        assert (gone.json()["deleted"], gone.json()["purge"]) == (True, "pending")
        assert gone.headers["location"] == f"/v1/erasures/{gone.json()['erasure']}"
        assert complete(acme, "alice:voice").status_code == 404
        way.open()
        give_up = time.monotonic() + 120
        while answers_again(service.store):
            assert time.monotonic() < give_up
            time.sleep(0.1)
        assert everything_kept(service.store) == []
        wait_until(lambda: acme.get(gone.headers["location"]).json()["deleted"])


def test_a_store_that_hangs_holds_up_neither_the_answer_to_a_deletion_nor_the_count_of_use(
    way, where, tmp_path, monkeypatch
):
    monkeypatch.setattr(erasing, "PURGE_S", 0.5)
    with serving(tmp_path, store=where) as service:
        acme = service.tenant()
        service.user(acme, "alice")
        file, other = (service.upload(acme, user="alice").json()["id"] for _ in range(2))
        service.publish(acme.scope, "alice", "voice", files=[file])
        way.mute()
        for path in (f"/v1/files/{other}", "/v1/models/alice:voice", "/v1/users/alice"):
            began = time.monotonic()
            gone = acme.delete(path)
            assert time.monotonic() - began < 10  # one request to the store may take three times as long
            assert (gone.status_code, gone.json()["deleted"], gone.json()["purge"]) == (200, True, "pending")
        time.sleep(2.5)  # by now the erasures are gone on with, and hang
        assert complete(acme, "tiny").status_code == 200
        began = time.monotonic()
        wait_until(lambda: [day.requests for day in service.store.usage.report(acme.scope)] == [1])
        assert time.monotonic() - began < 10
        way.cut()  # what hangs ends
        way.open()
        wait_until(lambda: acme.get(gone.headers["location"]).json()["deleted"])
        assert everything_kept(service.store) == []
