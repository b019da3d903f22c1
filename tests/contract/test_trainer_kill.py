"""Workers as real processes: killed with -9, told to stop. Leases decide who goes on."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from database_making import everything
from outside_servers import Way
from production_making import environment as inherited
from real_processes import children_of
from sqlalchemy import select
from store_making import lapse, upload
from trainer_making import dataset
from waiting import wait_until

from prefix_engine import load_base
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.tables import checkpoints


@pytest.fixture
def start(settings, folder, tmp_path):
    started = []

    def start(also=None, **more):
        environment = {
            "PATH": os.environ["PATH"],
            "OMP_NUM_THREADS": "1",
            "PREFIX_DATA_DIR": str(settings.data_dir),
            "PREFIX_BASE_MODEL": folder,
            "PREFIX_LEASE_SECONDS": str(settings.lease_seconds),
            "PREFIX_WORKER_THREADS": "1",
            "PREFIX_WORKER_POLL_SECONDS": "0.1",
            "PREFIX_WORKER_CHECKPOINT_SECONDS": "0.2",
        }
        environment |= {f"PREFIX_WORKER_{name.upper()}": str(value) for name, value in more.items()}
        environment |= inherited(settings) | (also or {})
        with (tmp_path / "worker.log").open("ab") as log:
            process = subprocess.Popen([sys.executable, "-m", "trainer_worker"], env=environment, stderr=log)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def queued(store, tenant, alice, folder, prefix="voice", steps=1000):
    wishes = Hyperparameters.from_json({"max_steps": steps, "batch_size": 8, "eval_steps": steps})
    file = upload(store, tenant, alice, dataset())
    fingerprint = load_base(folder, "cpu").fingerprint
    return store.jobs.create(
        tenant, alice, prefix, [file.id], base_fingerprint=fingerprint, hyperparameters=wishes, seed=7
    )


def ended(store, tenant, job):
    return wait_until(
        lambda: (found := store.jobs.get(tenant, job.id)).status in {"succeeded", "failed"} and found, 120
    )


def kept_updates(store, job):
    """Updates behind the state that is kept of a job; 0 if none is."""
    with everything(store) as connection:
        found = select(checkpoints.c.update_number).where(checkpoints.c.job_id == job.id)
        return connection.execute(found).scalar() or 0


def sha256_of(store, tenant, name):
    return store.registry.resolve(tenant, name).sha256


def test_a_worker_killed_in_mid_training_is_followed_by_one_that_ends_the_same(
    store, tenant, alice, folder, start
):
    cut = queued(store, tenant, alice, folder, "cut")
    # It never hears of the end, however far the training comes before the kill.
    first = start({"PREFIX_FAILPOINTS": "worker.after_checkpoint=sleep(600)"})
    wait_until(lambda: kept_updates(store, cut) > 0)
    (training,) = children_of(first.pid)
    first.kill()
    first.wait()
    wait_until(lambda: not alive(training))
    assert store.jobs.get(tenant, cut.id).status == "running"
    lapse(store, cut.id)
    whole = queued(store, tenant, alice, folder, "whole")
    start()
    done = ended(store, tenant, cut)
    assert ended(store, tenant, whole).status == "succeeded"
    assert (done.status, done.attempt, done.fine_tuned_model) == ("succeeded", 2, "alice:cut@1")
    (view,) = [view for view in store.registry.list(tenant) if view.name == "alice:cut"]
    assert len(view.versions) == 1
    steps = [
        event.data["step"]
        for event in store.jobs.events(tenant, cut.id, limit=100)
        if event.type == "metrics"
    ]
    assert max(steps) == 1000
    assert steps.count(0) == 1  # it went on; it did not begin anew
    ours, theirs = (store.jobs.get(tenant, job.id).result for job in (cut, whole))
    assert ours["held_out_loss"] == theirs["held_out_loss"]
    payloads = [
        store.registry.read(store.registry.resolve(tenant, f"alice:{name}")) for name in ("cut", "whole")
    ]
    assert payloads[0] == payloads[1]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_worker_told_to_stop_gives_its_job_back_and_leaves_no_process(
    store, tenant, alice, folder, start, how
):
    job = queued(store, tenant, alice, folder, steps=1_000_000)
    worker = start()
    wait_until(lambda: (store.jobs.get(tenant, job.id).progress or {}).get("update"))
    (training,) = children_of(worker.pid)
    worker.send_signal(how)
    assert worker.wait(120) == 0
    assert not alive(training)
    back = store.jobs.get(tenant, job.id)
    assert back.status == "queued"
    claim = store.jobs.claim("test")
    assert claim.attempt == 2
    assert store.jobs.load_checkpoint(claim) is not None


@pytest.mark.parametrize("how", ["cut", "mute"])
def test_a_worker_that_cannot_publish_leaves_when_told_to_and_another_does(
    store, settings, tenant, alice, folder, start, how, tmp_path
):
    """A storage that refuses has the job given back; one that hangs has the worker leave and its lease run out."""
    if settings.blobs_url is None:
        pytest.skip("a folder is not away")
    job = queued(store, tenant, alice, folder, steps=40)
    with Way(urlsplit(settings.blobs_endpoint).port) as way:
        through = {"PREFIX_BLOBS_ENDPOINT": f"http://127.0.0.1:{way.port}"}
        through["PREFIX_BLOBS_TIMEOUT_SECONDS"] = "600"
        through["PREFIX_FAILPOINTS"] = "worker.before_settle=sleep(3)"  # trained, and not yet published
        worker = start(through, stop_seconds=1, checkpoint_seconds=600)
        log = tmp_path / "worker.log"
        wait_until(lambda: "job.trains" in log.read_text(), 120)  # what it needs has been read
        getattr(way, how)()
        wait_until(lambda: "failpoint worker.before_settle" in log.read_text(), 120)
        wait_until(lambda: way.swallowed or "job.settled_again" in log.read_text(), 120)
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(120) == (0 if how == "cut" else 1)
    assert store.jobs.get(tenant, job.id).status == ("queued" if how == "cut" else "running")
    if how == "mute":
        lapse(store, job.id)
    start()
    done = ended(store, tenant, job)
    assert (done.status, done.attempt) == ("succeeded", 2)


def test_an_idle_worker_stops_when_told_to(store, start, tmp_path):
    worker = start()
    wait_until(lambda: "worker.ready" in (tmp_path / "worker.log").read_text())
    worker.terminate()
    assert worker.wait(120) == 0


def test_workers_share_the_queue(store, tenant, alice, folder, start):
    jobs = [queued(store, tenant, alice, folder, f"voice-{i}", steps=20) for i in range(3)]
    start()
    start()
    for job in jobs:
        done = ended(store, tenant, job)
        assert (done.status, done.attempt) == ("succeeded", 1)


def test_the_training_process_has_no_secret_in_its_environment(store, tenant, alice, folder, start):
    job = queued(store, tenant, alice, folder, steps=1_000_000)
    worker = start()
    wait_until(lambda: (store.jobs.get(tenant, job.id).progress or {}).get("update"))
    (training,) = children_of(worker.pid)
    names = [
        entry.partition(b"=")[0] for entry in Path(f"/proc/{training}/environ").read_bytes().split(b"\0")
    ]
    assert not [name for name in names if name.startswith(b"PREFIX_")]
    held = [str(place.readlink()) for place in Path(f"/proc/{training}/fd").iterdir()]
    assert not [place for place in held if "store.sqlite3" in place or "blobs" in place]
    assert os.getpgid(training) == training
    assert int(Path(f"/proc/{training}/stat").read_text().rpartition(")")[2].split()[16]) >= 10  # nice


def test_a_training_process_that_is_stuck_is_killed_and_its_job_goes_on(store, tenant, alice, folder, start):
    job = queued(store, tenant, alice, folder, steps=2000)
    worker = start(silence_seconds=15)
    wait_until(lambda: (store.jobs.get(tenant, job.id).progress or {}).get("update"))
    (stuck,) = children_of(worker.pid)
    os.kill(stuck, signal.SIGSTOP)
    wait_until(lambda: not alive(stuck), 60)
    done = ended(store, tenant, job)
    assert done.status == "succeeded"
    assert done.attempt >= 2  # on a very busy machine one more may seem stuck


def test_a_signal_to_the_whole_group_costs_no_attempt(store, tenant, alice, folder, start):
    """A supervisor that ends a service sends its signal to every process of it."""
    job = queued(store, tenant, alice, folder, steps=1_000_000)
    worker = start()
    wait_until(lambda: (store.jobs.get(tenant, job.id).progress or {}).get("update"))
    (training,) = children_of(worker.pid)
    os.kill(training, signal.SIGTERM)
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0
    assert store.jobs.get(tenant, job.id).status == "queued"
    claim = store.jobs.claim("another")
    assert store.jobs.load_checkpoint(claim) is not None
