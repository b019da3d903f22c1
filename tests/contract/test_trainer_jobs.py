"""A worker over a real store, its training in real processes: every way in which a job can end."""

import json
import os
import signal
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from database_making import everything
from production_making import damage as spoil
from sqlalchemy import event, select, update
from sqlalchemy.exc import OperationalError
from store_making import files_on_disk, lapse, publish, upload
from store_making import queue as queue_of
from trainer_making import dataset
from waiting import wait_until

from prefix_engine import Prefix
from prefix_engine.template import Template
from prefix_store.errors import NoLiveVersion
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.tables import jobs, versions
from trainer_worker import attempt, turn
from trainer_worker.child_process import Child
from trainer_worker.reading import read_order
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

PATIENCE_S = 240
LONG = {"max_steps": 1_000_000, "eval_steps": 1_000_000}


@pytest.fixture
def queue(store, tenant, alice, base):
    def queued(data=None, prefix="voice", wishes=None, **more):
        file = upload(store, tenant, alice, dataset() if data is None else data)
        wishes = Hyperparameters.from_json({"max_steps": 8, "batch_size": 8, **(wishes or {})})
        more = {"base_fingerprint": base.fingerprint, "seed": 1} | more
        files = more.pop("files", [file.id])
        return store.jobs.create(tenant, alice, prefix, files, hyperparameters=wishes, **more)

    return queued


@pytest.fixture
def worker(store, folder):
    return Worker(
        store,
        WorkerSettings(
            base_model=folder, worker_threads=1, worker_poll_seconds=0.05, worker_checkpoint_seconds=0.3
        ),
        threading.Event(),
    )


@contextmanager
def working(worker):
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker._stop.set()
        thread.join(120)
        assert not thread.is_alive()


def wait_for(store, tenant, job, accept, seconds=60):
    give_up = time.monotonic() + seconds
    while not accept(found := store.jobs.get(tenant, job.id)):
        assert time.monotonic() < give_up, found
        time.sleep(0.05)
    return found


def ended(store, tenant, job, seconds=60):
    return wait_for(store, tenant, job, lambda found: found.status not in {"queued", "running"}, seconds)


def underway(store, tenant, job):
    return wait_for(store, tenant, job, lambda found: (found.progress or {}).get("update"))


def messages(store, tenant, job):
    return [event.message for event in reversed(store.jobs.events(tenant, job.id, limit=100))]


def test_a_job_becomes_a_live_version(store, tenant, alice, queue, worker, base):
    job = queue()
    with working(worker):
        done = ended(store, tenant, job)
    assert (done.status, done.promoted, done.fine_tuned_model) == ("succeeded", True, "alice:voice@1")
    assert done.result["held_out_loss"] < done.result["base_loss"]
    assert done.trained_tokens > 0
    told = {"max_steps": 8, "batch_size": 8, "learning_rate_multiplier": 1.0, "prefix_length": 10}
    assert done.resolved | told == done.resolved
    resolved = store.registry.resolve(tenant, "alice:voice")
    prefix = Prefix.from_bytes(store.registry.read(resolved), base)
    assert (resolved.m, resolved.position_offset) == (prefix.m, prefix.position_offset)
    assert Template.from_json(resolved.template) == Template.of(base.tokenizer)
    told = messages(store, tenant, job)
    assert any(message.startswith("Step 8/8") for message in told)
    assert any("Held-out loss of the base model" in message for message in told)
    events = store.jobs.events(tenant, job.id, limit=100)
    last = next(event for event in events if event.type == "metrics")
    assert last.data["step"] == 8
    assert done.progress["updates"] == 8


def test_what_does_not_beat_the_live_version_waits(store, tenant, queue, worker):
    good = queue(wishes={"max_steps": 60})
    with working(worker):
        assert ended(store, tenant, good).promoted
        worse = queue(wishes={"max_steps": 1, "learning_rate": 1e-8})
        done = ended(store, tenant, worse)
    assert (done.status, done.promoted, done.fine_tuned_model) == ("succeeded", False, "alice:voice@2")
    assert store.registry.resolve(tenant, "alice:voice").number == 1
    assert any("does not beat the live version's" in message for message in messages(store, tenant, worse))
    assert done.result["live_loss"] == pytest.approx(
        store.jobs.get(tenant, good.id).result["held_out_loss"], abs=1e-4
    )


def test_what_does_not_beat_the_base_leaves_the_name_without_a_version(store, tenant, queue, worker):
    words = "Paris"  # which a base of random weights likes less than nothing
    wishes = {"max_steps": 1, "learning_rate": 1e-8, "init_text": words, "parametrization": "direct"}
    job = queue(wishes=wishes)
    with working(worker):
        done = ended(store, tenant, job)
    assert (done.status, done.promoted) == ("succeeded", False)
    with pytest.raises(NoLiveVersion):
        store.registry.resolve(tenant, "alice:voice")


@pytest.mark.parametrize(
    ("data", "code", "param"),
    [
        (dataset(9), "too_few_rows", "training_file"),
        (
            dataset(20) + b'{"prompt": "p", "completion": "' + b"z" * 200 + b'"}',
            "row_too_long",
            "training_file",
        ),
    ],
)
def test_bad_data_fails_at_once_and_is_never_tried_again(store, tenant, queue, worker, data, code, param):
    bad, good = queue(data), queue(prefix="other")
    with working(worker):
        failed = ended(store, tenant, bad)
        assert ended(store, tenant, good).status == "succeeded"
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", code, param)
    assert failed.attempt == 1


def test_a_job_for_another_base_fails(store, tenant, queue, worker):
    job = queue(base_fingerprint="f" * 64)
    with working(worker):
        failed = ended(store, tenant, job)
    assert (failed.status, failed.error.code) == ("failed", "base_mismatch")


def test_a_base_that_cannot_be_loaded_is_told_and_costs_the_job_nothing(
    store, tenant, queue, tmp_path, monkeypatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    job = queue()
    lost = Worker(store, WorkerSettings(base_model=str(tmp_path / "gone")), threading.Event())
    with working(lost):
        wait_for(
            store, tenant, job, lambda _: any("cannot be loaded" in m for m in messages(store, tenant, job))
        )
        assert wait_for(store, tenant, job, lambda found: found.status == "queued").error is None


def test_a_job_goes_on_from_a_version(store, tenant, queue, worker):
    first = queue(wishes={"prefix_length": 6, "text_start": "0"})
    with working(worker):
        ended(store, tenant, first)
        start = store.registry.resolve(tenant, "alice:voice@1").version_id
        done = ended(store, tenant, queue(start_version_id=start, wishes={"max_steps": 30}))
    assert (done.result["prefix_length"], done.result["text_start"]) == (6, "0")
    assert done.result["first_loss"] == pytest.approx(done.result["live_loss"], abs=1e-3)


def test_versions_that_may_have_been_trained_on_the_held_out_rows_are_told_of(store, tenant, alice):
    """A file's rows are held out of it, not out of what another version learned from."""
    one, other, trusted = (upload(store, tenant, alice).id for _ in range(3))
    first = publish(store, tenant, alice, "voice", files=[one], promote=False).version_id
    publish(store, tenant, alice, "voice", files=[one])
    ours = " may have been trained on rows that this job holds out"

    def told(files, **more):
        job = queue_of(store, tenant, alice, "voice", files, **more)
        claim = store.jobs.claim("w")
        read_order(store, WorkerSettings(base_model="none"), claim)
        found = [event for event in store.jobs.events(tenant, job.id, limit=100) if ours in event.message]
        store.jobs.fail(claim, "enough", "read")
        assert all(event.level == "warn" and "give a validation_file" in event.message for event in found)
        return [event.message.split(ours)[0] for event in found]

    assert told([one]) == []
    assert told([one], start_version_id=first) == []
    assert told([other]) == ["The live version"]
    assert told([one, other], start_version_id=first) == ["The live version and the version to start from"]
    assert told([other], start_version_id=first, validation_file=trusted) == []
    with_trusted = publish(store, tenant, alice, "voice", files=[one], validation_file=trusted, promote=False)
    assert told([one], start_version_id=with_trusted.version_id) == ["The version to start from"]
    # All rows of `one` trained it, and a tenth of both files' is held out now: the same files, and not the same rows.
    both = "The live version and the version to start from"
    assert told([one, trusted], start_version_id=with_trusted.version_id) == [both]
    publish(store, tenant, alice, "voice", files=[one], start_version_id=with_trusted.version_id)
    assert told([one]) == ["The live version"]
    store.registry.rollback(tenant, "alice:voice")
    assert told([one]) == []


def test_a_start_whose_template_cannot_be_read_fails_its_job_once(store, tenant, alice, queue, worker, base):
    start = publish(store, tenant, alice, "voice").version_id
    spoilt = {"template": {}, "base_fingerprint": base.fingerprint}
    with everything(store) as connection:
        connection.execute(update(versions).where(versions.c.version_id == start).values(**spoilt))
    job = queue(start_version_id=start)
    with working(worker):
        failed = ended(store, tenant, job)
    assert (failed.status, failed.error.code, failed.error.param) == ("failed", "corrupt", "model")
    assert "start from another" in failed.error.message
    assert failed.attempt == 1


def test_a_live_version_that_cannot_be_read_is_passed_over(store, tenant, alice, queue, worker, base):
    publish(store, tenant, alice, "voice")  # bytes that are no prefix
    job = queue()
    with working(worker):
        done = ended(store, tenant, job)
    assert done.promoted
    assert "live_loss" not in done.result


def damage(store, before):
    (place,) = files_on_disk(store) - before
    spoil(store, place, lambda data: data[:-7] + b"damaged")


def test_a_damaged_file_fails_its_own_job_only(store, tenant, queue, worker):
    before = files_on_disk(store)
    bad = queue()
    damage(store, before)
    good = queue(prefix="other")
    with working(worker):
        failed = ended(store, tenant, bad)
        assert ended(store, tenant, good).status == "succeeded"
    assert (failed.status, failed.error.code, failed.error.param) == (
        "failed",
        "file_corrupt",
        "training_file",
    )


def test_a_damaged_checkpoint_costs_time_only(store, tenant, queue, worker):
    before = files_on_disk(store)
    job = queue()
    before = files_on_disk(store)
    claim = store.jobs.claim("another")
    store.jobs.save_checkpoint(claim, 3, b"state")
    damage(store, before)
    store.jobs.release(claim)
    with working(worker):
        assert ended(store, tenant, job).promoted


def training_processes():
    found = set()
    for place in Path("/proc").iterdir():
        if place.name.isdigit():
            try:
                if b"trainer_worker.child" in (place / "cmdline").read_bytes():
                    found.add(int(place.name))
            except OSError:
                continue
    return {pid for pid in found if _parent(pid) == os.getpid()}


def _parent(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def test_a_cancelled_job_stops_and_leaves_nothing(store, tenant, queue, worker):
    before = files_on_disk(store)
    job = queue(wishes=LONG)
    with working(worker):
        underway(store, tenant, job)
        assert training_processes()
        store.jobs.cancel(tenant, job.id)
        give_up = time.monotonic() + 120
        while training_processes():
            assert time.monotonic() < give_up
            time.sleep(0.05)
    assert store.jobs.get(tenant, job.id).status == "cancelled"
    assert len(files_on_disk(store) - before) == 1  # the dataset


def test_an_erased_user_leaves_no_training_behind_and_the_erasure_ends(store, tenant, queue, worker):
    job = queue(wishes=LONG)
    with working(worker):
        underway(store, tenant, job)
        erasure = store.erasure.begin(tenant, "alice")
        give_up = time.monotonic() + 120
        while store.erasure.purge(erasure.id).state != "done":
            assert time.monotonic() < give_up
            time.sleep(0.1)
        assert not training_processes()
    assert not files_on_disk(store)


def test_a_stopped_worker_gives_its_job_back_and_the_next_one_goes_on(store, tenant, queue, worker, folder):
    job = queue(wishes={"max_steps": 4000, "eval_steps": 4000})
    with working(worker):
        underway(store, tenant, job)
    back = store.jobs.get(tenant, job.id)
    assert back.status == "queued"
    assert not training_processes()
    settings = WorkerSettings(base_model=folder, worker_threads=1, worker_poll_seconds=0.05)
    next_one = Worker(store, settings, threading.Event())
    with working(next_one):
        done = ended(store, tenant, job)
    assert (done.status, done.attempt) == ("succeeded", 2)
    steps = [
        event.data["step"]
        for event in reversed(store.jobs.events(tenant, job.id, limit=100))
        if event.type == "metrics"
    ]
    assert steps == sorted(steps)
    assert len(steps) == len(set(steps))


def test_a_long_job_gives_way_to_another_tenants_and_ends_as_if_nothing_had_been(
    store, tenant, other_tenant, queue, folder, base, monkeypatch
):
    monkeypatch.setattr(turn, "_LOOK_SECONDS", 0.05)
    settings = WorkerSettings(base_model=folder, worker_threads=1, worker_poll_seconds=0.05)
    first, second = (Worker(store, settings, threading.Event()) for _ in range(2))
    wishes = {"max_steps": 1500, "eval_steps": 500}
    whole = queue(prefix="whole", wishes=wishes)
    with working(first):
        assert ended(store, tenant, whole, PATIENCE_S).attempt == 1
    zoe = store.owners.create_user(other_tenant, "zoe")
    file = upload(store, other_tenant, zoe, dataset())
    cut, later = queue(prefix="cut", wishes=wishes), queue(prefix="later")
    long = property(lambda self: 4000.0 if self.claim.job_id == cut.id else 0.0)
    monkeypatch.setattr(attempt.Attempt, "seconds", long)
    held, asked = threading.Event(), threading.Event()
    take, ask_to_stop = attempt.Attempt.take, Child.ask_to_stop

    def holding(self, frame):
        if frame.kind == "progress" and self.claim.job_id == cut.id and not held.is_set():
            for pid in training_processes():
                os.kill(pid, signal.SIGSTOP)  # so that it is not over before the other job is there
            held.set()
        return take(self, frame)

    def noted(child):
        asked.set()
        ask_to_stop(child)

    monkeypatch.setattr(attempt.Attempt, "take", holding)
    monkeypatch.setattr(Child, "ask_to_stop", noted)
    with working(second):
        assert held.wait(PATIENCE_S)
        few = Hyperparameters.from_json({"max_steps": 8})
        more = {"hyperparameters": few, "base_fingerprint": base.fingerprint}
        short = store.jobs.create(other_tenant, zoe, "voice", [file.id], **more)
        assert asked.wait(PATIENCE_S)
        for pid in training_processes():
            os.kill(pid, signal.SIGCONT)
        assert ended(store, other_tenant, short, PATIENCE_S).status == "succeeded"
        assert store.jobs.get(tenant, cut.id).finished_at is None  # nor did the tenant's next job come before
        ended_cut = ended(store, tenant, cut, PATIENCE_S)
        assert ended(store, tenant, later, PATIENCE_S).attempt == 1
    assert store.jobs.get(other_tenant, short.id).attempt == 1
    assert store.jobs.get(tenant, later.id).started_at > store.jobs.get(other_tenant, short.id).started_at
    assert (ended_cut.status, ended_cut.attempt) == ("succeeded", 2)
    assert crashes_of(store, cut) == 0
    read = [store.registry.read(store.registry.resolve(tenant, f"alice:{name}")) for name in ("whole", "cut")]
    assert read[0] == read[1]


def test_a_training_process_that_dies_is_counted_and_the_job_given_up_in_the_end(
    store, tenant, queue, worker, monkeypatch
):
    monkeypatch.setattr(attempt, "_LONGEST_BACKOFF", 0.05)
    # The next process may be killed before it looks at the job, and is to count all the same.
    monkeypatch.setattr(attempt, "_MOST_NOT_BEGUN", 0)
    poison, other = queue(wishes=LONG), queue(prefix="other")
    killed = set()
    with working(worker):
        give_up = time.monotonic() + 120
        while store.jobs.get(tenant, poison.id).status != "failed":
            assert time.monotonic() < give_up
            if (store.jobs.get(tenant, poison.id).progress or {}).get("update"):
                for pid in training_processes() - killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            time.sleep(0.1)
        assert ended(store, tenant, other).status == "succeeded"
    failed = store.jobs.get(tenant, poison.id)
    assert (failed.error.code, failed.attempt) == ("worker_crashed", 3)


@pytest.fixture
def away(store):
    """While it is set the database answers nobody but the test's own thread."""
    is_away, here = threading.Event(), threading.get_ident()

    def unless_away(*_):
        if is_away.is_set() and threading.get_ident() != here:
            raise OperationalError("SELECT 1", {}, Exception("the server closed the connection"))

    for engine in {store._system.engine, store._core.database.engine}:
        event.listen(engine, "before_cursor_execute", unless_away)
    return is_away


def crashes_of(store, job):
    with everything(store) as connection:
        return connection.execute(select(jobs.c.crashes).where(jobs.c.id == job.id)).scalar_one()


def test_a_worker_that_stops_while_the_database_is_away_gives_its_job_back_if_it_returns_soon(
    store, tenant, queue, folder, away
):
    job = queue(wishes=LONG)
    settings = WorkerSettings(
        base_model=folder, worker_threads=1, worker_poll_seconds=0.05, worker_stop_seconds=0.5
    )
    worker = Worker(store, settings, threading.Event())
    with working(worker):
        underway(store, tenant, job)
        away.set()
        worker._stop.set()
        wait_until(lambda: not training_processes())
        wait_until(lambda: worker._owed._jobs)
        away.clear()
    assert store.jobs.get(tenant, job.id).status == "queued"
    assert crashes_of(store, job) == 0


def test_a_database_that_is_away_for_longer_than_a_lease_is_not_the_jobs_fault(
    store, tenant, queue, worker, away, monkeypatch
):
    job, begun, init = queue(wishes=LONG), [], attempt.Attempt.__init__

    def noted(self, *told):
        init(self, *told)
        begun.append(self)

    def over():
        begun[-1]._beaten -= 2 * store.settings.lease_seconds
        return not training_processes()

    monkeypatch.setattr(attempt.Attempt, "__init__", noted)
    with working(worker):
        for attempts in (1, 2):
            wait_for(store, tenant, job, lambda found, n=attempts: found.attempt == n)
            wait_until(training_processes)
            away.set()
            wait_until(over)
            lapse(store, job.id)
            away.clear()
        wait_for(store, tenant, job, lambda found: found.attempt == 3)
    assert crashes_of(store, job) == 0


def test_no_text_of_the_rows_is_logged_or_told(store, tenant, queue, worker, capfd, caplog):
    caplog.set_level("DEBUG", "trainer_worker")
    canary = b'{"prompt": "canary-seven", "completion": "parrot-nine"}\n'
    good = queue(dataset(30) + canary, wishes={"init_text": "toucan-three"})
    bad = queue(dataset(2) + canary, prefix="other")
    with working(worker):
        ended(store, tenant, good)
        ended(store, tenant, bad)
    told = json.dumps([messages(store, tenant, job) for job in (good, bad)])
    written = capfd.readouterr()
    for text in (told, caplog.text, written.out, written.err):
        for bird in ("canary", "parrot", "toucan"):
            assert bird not in text
