"""Redis as a hint: what it brings while it is there, and that nothing changes when it is slow, emptied or gone.

The Redis is the tests' own, behind a way that can be cut; database and files are SQLite and an object storage.
"""

import secrets
import shutil
import threading
import time
from types import SimpleNamespace

import pytest
import redis
from outside_servers import Way, redis_server
from production_making import REGION, bucket, cached, damage, everything_kept
from service_making import complete, error_of, serving
from store_making import complete as publish_claimed
from store_making import files_on_disk, publish, queue, upload
from waiting import PATIENCE_S, wait_until

from prefix_store import StoreSettings, open_store
from prefix_store.db import tell
from prefix_store.errors import NotFound, StoreError
from prefix_store.rates import Rates
from prefix_store.redis_link import ANSWER_S
from prefix_store.wakes import TOPICS
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="there is no redis-server here")


@pytest.fixture(scope="module")
def port(tmp_path_factory):
    with redis_server(tmp_path_factory.mktemp("redis")) as at:
        yield at


@pytest.fixture(autouse=True)
def long_answers(monkeypatch):
    """A Redis on a machine that stands still for seconds is none that is away; see `hasty`."""
    monkeypatch.setattr("prefix_store.redis_link.ANSWER_S", 30.0)


def hasty(store, seconds=ANSWER_S):
    """From now on this store waits for answers no longer than in production."""
    pool = store._core.link.pool
    pool.connection_kwargs |= {"socket_timeout": seconds, "socket_connect_timeout": seconds}
    pool.disconnect(inuse_connections=False)
    for connection in pool._available_connections:  # which keep the time that they were made with
        connection.socket_timeout = connection.socket_connect_timeout = seconds


@pytest.fixture
def way(port):
    with Way(port) as made:
        yield made


@pytest.fixture
def server(port):
    with redis.Redis(port=port) as client:
        yield client
        client.flushall()


@pytest.fixture
def where(way):
    name, endpoint, _ = bucket()
    return {
        "blobs_url": f"s3://{name}/{secrets.token_hex(6)}",
        "blobs_endpoint": endpoint,
        "blobs_region": REGION,
        "redis_url": f"redis://127.0.0.1:{way.port}/0",
    }


@pytest.fixture
def settings(tmp_path, where):
    return StoreSettings(data_dir=tmp_path, **where)


@pytest.fixture
def second(settings, store):
    """The same installation in another process, as far as Redis can tell."""
    opened = open_store(settings)
    yield opened
    opened.close()


def heard(store, *topics):
    """Events that wake-ups set; the store listens already. Once for a store."""
    ready = threading.Event()
    store.wakes.listen(TOPICS[-1], ready.set)
    assert ready.wait(PATIENCE_S)
    events = [threading.Event() for _ in topics]
    for topic, event in zip(topics, events, strict=True):
        store.wakes.listen(topic, event.set)
    return events


def answers_again(store):
    """Once the breaker has tried again."""
    wait_until(lambda: store._core.link.ask(lambda server: server.ping(), False))


def test_sealed_prefixes_lie_in_redis_for_a_time_and_nothing_else_does(store, second, server, tenant, alice):
    publish(store, tenant, alice, "voice", b"kingfisher")
    resolved = store.registry.resolve(tenant, "alice:voice")
    assert store.registry.read(resolved) == b"kingfisher"
    (((key, name), value),) = cached(store).items()
    assert key.startswith(b"prefixserve:")
    assert name == resolved.version_id.encode()
    assert b"kingfisher" not in value
    assert 0 < server.ttl(key) <= 600
    for place in files_on_disk(store):
        damage(store, place, lambda data: data[:-1])
    server.hset(key, name, value)
    assert second.registry.read(resolved) == b"kingfisher"  # the file itself is damaged by now


def test_whatever_somebody_puts_into_redis_the_answer_is_the_same(store, server, tenant, alice):
    publish(store, tenant, alice, "voice", b"one")
    publish(store, tenant, alice, "style", b"two")
    found = [store.registry.resolve(tenant, f"alice:{name}") for name in ("voice", "style")]
    assert [store.registry.read(each) for each in found] == [b"one", b"two"]
    ((key, first), one), ((_, second), two) = cached(store).items()
    server.hset(key, mapping={first: two, second: one[:-1]})
    assert [store.registry.read(each) for each in found] == [b"one", b"two"]


def test_what_is_removed_leaves_redis_and_is_never_put_back(store, second, server, tenant, alice):
    bob = store.owners.create_user(tenant, "bob")
    for owner, name in ((alice, "voice"), (alice, "style"), (bob, "voice")):
        publish(store, tenant, owner, name)
    found = {
        name: store.registry.resolve(tenant, name) for name in ("alice:voice", "alice:style", "bob:voice")
    }
    raw = {}
    for name, resolved in found.items():
        store.registry.read(resolved)
        raw[name] = store.blobs.files.read(resolved.place)
    assert len(cached(store)) == 3
    store.registry.delete_prefix(tenant, "alice:voice")
    assert len(cached(store)) == 2
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "done"
    (left,) = cached(store)
    assert left[1] == found["bob:voice"].version_id.encode()
    for name, resolved in found.items():  # a reader that was late
        second.blobs._cache.put(resolved.place, raw[name])
    assert list(cached(store)) == [left]


def test_a_mark_that_redis_has_evicted_brings_nothing_back(store, second, server, tenant, alice, monkeypatch):
    publish(store, tenant, alice, "voice")
    resolved = store.registry.resolve(tenant, "alice:voice")
    read = second.blobs.files.read

    def slow(place):
        """The file is read, and before the reader goes on it is erased and Redis loses the mark of that."""
        data = read(place)
        erasure = store.erasure.begin(tenant, "alice")
        assert store.erasure.purge(erasure.id).state == "done"
        marks = list(server.scan_iter(match="*:gone:*"))
        assert marks
        server.delete(*marks)
        return data

    monkeypatch.setattr(second.blobs.files, "read", slow)
    second.registry.read(resolved)
    assert cached(store) == {}
    with pytest.raises(NotFound):
        second.registry.read(resolved)


def test_a_deletion_says_that_bytes_are_left_in_a_redis_that_is_away(way, where, tmp_path):
    with serving(tmp_path, store=where) as service:
        acme = service.tenant()
        for user in ("alice", "bob"):
            service.user(acme, user)
            service.publish(acme.scope, user, "voice")
            assert complete(acme, f"{user}:voice").status_code == 200
        way.cut()
        model = acme.delete("/v1/models/bob:voice").json()
        assert (model["deleted"], model["purge"]) == (True, "pending")
        answer = acme.delete("/v1/users/alice")
        assert answer.status_code == 200
        assert (answer.json()["deleted"], answer.json()["purge"]) == (True, "pending")
        assert not acme.get(answer.headers["location"]).json()["deleted"]
        way.open()
        wait_until(lambda: acme.get(answer.headers["location"]).json()["deleted"])
        assert cached(service.store) == {}
        assert acme.delete("/v1/users/bob").json() == {
            "id": "bob",
            "object": "user",
            "deleted": True,
            "purge": "done",
        }


def tell_and_roll_back(store):
    with store._system.write() as connection:
        tell(connection, "changes")
        raise NotFound("model", "of nobody")


def test_wake_ups_reach_other_processes_after_the_commit_and_only_then(store, second, tenant, alice):
    changes, jobs = heard(second, "changes", "jobs")
    with pytest.raises(NotFound):
        tell_and_roll_back(store)
    queue(store, tenant, alice, "voice")
    assert jobs.wait(PATIENCE_S)
    assert not changes.is_set()  # it would have come before
    publish_claimed(store, store.jobs.claim("w"))
    assert changes.wait(PATIENCE_S)


def test_a_worker_that_waits_is_woken_by_a_job(store, second, tenant, alice):
    file = upload(store, tenant, alice)
    damage(store, file.place, lambda data: data[:-1])  # so that the job ends before anything is trained
    stopping = threading.Event()
    worker = Worker(second, WorkerSettings(worker_poll_seconds=3600.0), stopping)
    thread = threading.Thread(target=worker.run)
    heard(second)
    thread.start()
    try:
        time.sleep(0.5)  # it has looked, and waits
        job = queue(store, tenant, alice, "voice", [file.id])
        wait_until(lambda: store.jobs.get(tenant, job.id).status == "failed")
    finally:
        stopping.set()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def test_processes_share_a_tenants_rate(store, second):
    taken = [each.rates.hit("ten-a", 3).allowed for each in (store, second, store, second, store)]
    assert taken == [True, True, True, False, False]
    assert store.rates.hit("ten-b", 3).remaining == 2


def test_an_emptied_redis_begins_no_new_minute(store, server):
    for _ in range(3):
        assert store.rates.hit("ten-a", 3).allowed
    server.flushall()
    assert not store.rates.hit("ten-a", 3).allowed


def test_installations_on_one_redis_do_not_meet(store, where, tmp_path, tenant, alice):
    other = open_store(StoreSettings(data_dir=tmp_path / "other", **where))
    named = open_store(StoreSettings(data_dir=tmp_path, redis_prefix="blue", **where))
    woken = [*heard(other, "jobs"), *heard(named, "jobs")]
    assert store.rates.hit("ten-a", 1).allowed
    assert all(each.rates.hit("ten-a", 1).allowed for each in (other, named))
    queue(store, tenant, alice, "voice")
    (mine,) = heard(store, "jobs")
    queue(store, tenant, alice, "voice")
    assert mine.wait(PATIENCE_S)
    assert not any(event.is_set() for event in woken)
    other.close()
    named.close()


@pytest.mark.parametrize("fault", ["cut", "mute"])
def test_without_redis_everything_is_answered_as_with_it(fault, way, store, tenant, alice):
    publish(store, tenant, alice, "voice", b"one")
    resolved = store.registry.resolve(tenant, "alice:voice")
    assert store.registry.read(resolved) == b"one"
    assert store.rates.hit("ten-a", 2).allowed
    hasty(store)
    getattr(way, fault)()
    assert store.registry.read(resolved) == b"one"
    publish(store, tenant, alice, "voice", b"two")
    assert store.registry.read(store.registry.resolve(tenant, "alice:voice")) == b"two"
    assert [store.rates.hit("ten-a", 2).allowed for _ in range(2)] == [True, False]
    store.registry.rollback(tenant, "alice:voice")
    store.registry.delete_version(tenant, "alice:voice", 2)
    hasty(store, 30.0)
    way.open()
    answers_again(store)
    assert not store.rates.hit("ten-a", 2).allowed
    assert store.registry.read(resolved) == b"one"


def test_a_silent_redis_is_asked_seldom(way, store):
    hasty(store)
    way.mute()
    way.asked = 0
    for _ in range(300):
        store.rates.hit("ten-a", 1000)
    assert 0 < way.asked < 30


def test_who_listens_hears_again_after_redis_was_away(way, store, second, tenant, alice):
    (jobs,) = heard(second, "jobs")
    way.cut()
    queue(store, tenant, alice, "voice")
    way.open()
    assert jobs.wait(PATIENCE_S)  # by looking once more when it listens again
    answers_again(store)
    jobs.clear()
    wait_until(lambda: store.wakes.tell(["jobs"]) or jobs.wait(0.1))


def test_an_erasure_is_done_only_when_redis_holds_nothing_any_more(way, store, tenant, alice):
    publish(store, tenant, alice, "voice")
    store.registry.read(store.registry.resolve(tenant, "alice:voice"))
    way.cut()
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"
    assert everything_kept(store) == []
    way.open()
    assert len(cached(store) or [1]) == 1
    wait_until(lambda: store.erasure.purge(erasure.id).state == "done")
    assert cached(store) == {}


def test_what_one_process_owes_to_redis_another_one_finds(way, store, second, server, tenant, alice):
    """A task's version that learned from her files: its place is noted, and no folder of hers."""
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e", files=[upload(store, tenant, alice).id])
    store.registry.read(store.registry.resolve(tenant, "task:e2e"))
    way.cut()
    erasure = store.erasure.begin(tenant, "alice")
    assert store.erasure.purge(erasure.id).state == "purging"  # and then this process dies
    assert store.erasure.purge(erasure.id).state == "purging"
    assert second.erasure.purge(erasure.id).state == "purging"
    assert len(server.keys(f"{store._core.link.key('blobs')}:*")) == 1
    way.open()
    answers_again(second)
    wait_until(lambda: second.erasure.purge(erasure.id).state == "done")
    assert cached(store) == {}
    assert store.erasure.resume() == 0


def test_a_note_goes_when_a_copys_time_is_over_though_redis_never_answers(
    way, settings, tenant, alice, store, monkeypatch
):
    later = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + later[0])
    monkeypatch.setattr("prefix_store.blob_cache.time", clock)
    brief = open_store(settings.model_copy(update={"redis_blob_seconds": 600}))
    publish(brief, tenant, alice, "voice")
    way.cut()
    brief.registry.delete_prefix(tenant, "alice:voice")
    assert not brief.erasure.clear(tenant)
    assert len(noted(store)) == 1
    later[0] = 601.0
    wait_until(lambda: brief.erasure.clear(tenant))
    wait_until(lambda: not brief.erasure.resume() and not noted(store))
    brief.close()


def noted(store):
    with store._system.read() as connection:
        return connection.exec_driver_sql("SELECT * FROM litter").all()


def test_an_erasure_does_not_wait_for_redis_longer_than_a_blob_may_lie_there(way, settings, tenant, store):
    brief = open_store(settings.model_copy(update={"redis_blob_seconds": 1}))
    store.owners.create_user(tenant, "bob")
    way.cut()
    erasure = brief.erasure.begin(tenant, "bob")
    wait_until(lambda: brief.erasure.purge(erasure.id).state == "done")
    brief.close()


@pytest.mark.parametrize("url", ["http://127.0.0.1:6379", "redis://127.0.0.1:port", "127.0.0.1"])
def test_an_address_that_is_none_of_redis_stops_the_start(tmp_path, url):
    with pytest.raises(StoreError, match="PREFIX_REDIS_URL"):
        open_store(StoreSettings(data_dir=tmp_path, redis_url=url))


def test_the_password_stands_nowhere(settings, tmp_path):
    secret = settings.model_copy(
        update={"redis_url": StoreSettings(redis_url="redis://:hunter2@x").redis_url}
    )
    assert "hunter2" not in repr(secret)
    assert Rates(None).hit("ten-a", 1).allowed


def test_a_service_answers_the_same_while_redis_comes_and_goes(way, where, server, tmp_path):
    with serving(tmp_path, store=where) as service:
        acme = service.tenant(requests_per_minute=6)
        service.user(acme, "alice")
        service.publish(acme.scope, "alice", "voice", seed=1)
        service.publish(acme.scope, "alice", "style", seed=2)
        texts = [complete(acme, "alice:voice").json()["choices"][0]["text"]]
        way.cut()
        texts.append(complete(acme, "alice:voice").json()["choices"][0]["text"])
        cold = complete(acme, "alice:style")
        assert cold.status_code == 200
        assert cold.headers["x-ratelimit-remaining-requests"] == "3"
        way.open()
        server.flushall()
        answers_again(service.parts.store)
        texts.append(complete(acme, "alice:voice").json()["choices"][0]["text"])
        hasty(service.parts.store)
        way.mute()
        texts += [complete(acme, "alice:voice").json()["choices"][0]["text"] for _ in range(2)]
        assert len(set(texts)) == 1
        refused = complete(acme, "alice:voice")
        assert (refused.status_code, error_of(refused)["code"]) == (429, "rate_limit_exceeded")
        assert acme.delete("/v1/users/alice").status_code == 200
