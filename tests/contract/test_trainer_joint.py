"""Jobs of tenants that let theirs be trained together: one process, ends of their own, a crash that blames nobody."""

import os
import signal
import threading
import time

import pytest
from store_making import files_on_disk, lapse, upload
from test_trainer_jobs import LONG, crashes_of, ended, training_processes, underway, wait_for, working
from trainer_making import dataset
from waiting import PATIENCE_S, wait_until

from prefix_store.errors import Unavailable
from prefix_store.evaluation import Evaluation
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.scope import Admin
from trainer_worker import attempt
from trainer_worker.child_process import Child
from trainer_worker.session import Session
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker


@pytest.fixture
def worker(store, folder):
    settings = WorkerSettings(
        base_model=folder,
        worker_threads=1,
        worker_poll_seconds=0.05,
        worker_checkpoint_seconds=0.3,
        worker_joint_jobs=4,
    )
    return Worker(store, settings, threading.Event())


@pytest.fixture
def jobs_of(store, base):
    """Jobs of a fresh tenant with one user each."""

    def made(name, count, *, joint, wishes=None):
        scope = store.keys.verify(store.tenants.create(Admin(), name, joint_training=joint)[1])
        found = []
        for number in range(count):
            user = store.owners.create_user(scope, f"user{number}")
            file = upload(store, scope, user, dataset(seed=number))
            asked = Hyperparameters.from_json({"max_steps": 8, "batch_size": 8, **(wishes or {})})
            more = {"base_fingerprint": base.fingerprint, "seed": number, "hyperparameters": asked}
            found.append((scope, store.jobs.create(scope, user, "voice", [file.id], **more)))
        return found

    return made


def all_underway(store, jobs):
    for scope, job in jobs:
        underway(store, scope, job)


def test_jobs_of_several_tenants_share_a_process_and_end_as_if_alone(store, jobs_of, worker, folder):
    jobs = [*jobs_of("acme", 2, joint=True, wishes=LONG), *jobs_of("globex", 1, joint=True, wishes=LONG)]
    quick = jobs_of("initech", 1, joint=True)
    with working(worker):
        all_underway(store, jobs)
        assert len(training_processes()) == 1
        ((scope, job),) = quick
        done = ended(store, scope, job)
        assert (done.status, done.promoted) == ("succeeded", True)
        assert len(training_processes()) == 1
        for scope, job in jobs:
            assert store.jobs.get(scope, job.id).status == "running"
    for scope, job in jobs:  # the worker was told to stop
        assert store.jobs.get(scope, job.id).status == "queued"
    alone = Worker(store, worker._settings.model_copy(update={"worker_joint_jobs": 1}), threading.Event())
    (again,) = jobs_of("umbrella", 1, joint=True)
    for scope, job in jobs:
        store.jobs.cancel(scope, job.id)
    with working(alone):
        twin = ended(store, *again)
    assert twin.result["held_out_loss"] == pytest.approx(done.result["held_out_loss"], abs=1e-4)
    assert twin.trained_tokens == done.trained_tokens


def test_who_has_not_opted_in_is_trained_alone(store, jobs_of, worker):
    jobs = jobs_of("acme", 2, joint=False)
    seen = set()
    with working(worker):
        for scope, job in jobs:
            while store.jobs.get(scope, job.id).status in {"queued", "running"}:
                running = training_processes()
                assert len(running) <= 1
                seen |= running
                time.sleep(0.02)
            assert store.jobs.get(scope, job.id).status == "succeeded"
    assert len(seen) == 2


def test_a_cancelled_and_an_erased_job_leave_the_process_and_the_others_go_on(store, jobs_of, worker):
    jobs = jobs_of("acme", 3, joint=True, wishes=LONG)
    with working(worker):
        all_underway(store, jobs)
        (process,) = training_processes()
        (scope, cancelled), _, (_, left) = jobs
        store.jobs.cancel(scope, cancelled.id)
        erasure = store.erasure.begin(scope, "user1")
        give_up = time.monotonic() + PATIENCE_S
        while store.erasure.purge(erasure.id).state != "done":
            assert time.monotonic() < give_up
            time.sleep(0.1)
        assert training_processes() == {process}
        seen = store.jobs.get(scope, left.id).progress["update"]
        wait_for(store, scope, left, lambda found: found.progress["update"] > seen, PATIENCE_S)
    assert store.jobs.get(scope, cancelled.id).status == "cancelled"
    assert {place.owner_id for place in files_on_disk(store)} == {
        store.owners.get(scope, name).owner_id for name in ("user0", "user2")
    }


def test_a_crash_of_the_shared_process_counts_for_nobody_and_each_is_tried_alone(
    store, jobs_of, worker, monkeypatch
):
    monkeypatch.setattr(attempt, "_LONGEST_BACKOFF", 0.05)
    jobs = jobs_of("acme", 3, joint=True, wishes=LONG)
    with working(worker):
        all_underway(store, jobs)
        (process,) = training_processes()
        os.kill(process, signal.SIGKILL)
        for number, (scope, job) in enumerate(jobs):
            wait_for(store, scope, job, lambda found: found.attempt == 2, PATIENCE_S)
            seen = store.jobs.get(scope, job.id).progress["update"]
            wait_for(store, scope, job, lambda found, n=seen: found.progress["update"] > n, PATIENCE_S)
            waiting = [store.jobs.get(scope, other.id) for _, other in jobs[number + 1 :]]
            assert all(other.status == "queued" for other in waiting)  # nobody trains beside it
            assert process not in training_processes()
            assert store.jobs.get(scope, job.id).attempt == 2
            assert crashes_of(store, job) == 0
            store.jobs.cancel(scope, job.id)  # for the next to come


def test_a_job_that_cannot_be_trained_ends_without_its_neighbours(store, jobs_of, worker, base):
    jobs = jobs_of("acme", 2, joint=True, wishes=LONG)
    scope = jobs[0][0]
    user = store.owners.create_user(scope, "mallory")
    file = upload(store, scope, user, dataset(9))
    bad = store.jobs.create(scope, user, "voice", [file.id], base_fingerprint=base.fingerprint)
    other = store.jobs.create(scope, user, "other", [file.id], base_fingerprint="e" * 64)
    with working(worker):
        all_underway(store, jobs)
        assert ended(store, scope, bad).error.code == "too_few_rows"
        assert ended(store, scope, other).error.code == "base_mismatch"
        assert all(store.jobs.get(scope, job.id).status == "running" for scope, job in jobs)


def test_a_process_that_does_not_let_go_is_ended_before_the_lease_is_over(
    store, jobs_of, worker, monkeypatch
):
    told = []
    brief = property(lambda session: 2.0, lambda session, seconds: told.append(seconds))
    monkeypatch.setattr(Session, "_leave_seconds", brief, raising=False)
    monkeypatch.setattr(attempt, "_LONGEST_BACKOFF", 0.05)
    jobs = jobs_of("acme", 2, joint=True, wishes=LONG)
    with working(worker):
        all_underway(store, jobs)
        (process,) = training_processes()
        os.kill(process, signal.SIGSTOP)
        (scope, cancelled), (_, left) = jobs
        store.jobs.cancel(scope, cancelled.id)
        began = time.monotonic()
        wait_for(store, scope, left, lambda found: found.attempt == 2, PATIENCE_S)
        assert time.monotonic() - began < store.settings.lease_seconds
        assert process not in training_processes()
        assert store.jobs.get(scope, cancelled.id).status == "cancelled"
        underway(store, scope, left)
    assert told
    assert max(told) < store.settings.lease_seconds


def test_a_process_that_let_go_while_the_store_kept_its_worker_waiting_goes_on(
    store, jobs_of, worker, monkeypatch
):
    jobs = jobs_of("acme", 2, joint=True, wishes=LONG)
    drop, waited = Child.drop, threading.Event()

    def behind(child, job):
        with child._told.mutex:  # who keeps it from being read must not keep it from being filled
            child._told.maxsize = 1 << 20
            child._told.not_full.notify_all()
        wait_until(lambda: not child._told.empty())  # something else is to be read before the answer to this
        drop(child, job)
        wait_until(lambda: any(frame and frame.kind == "dropped" for frame in list(child._told.queue)))
        waited.set()

    # By the time that the worker looks again, it has taken longer than a job may take to leave.
    passed = property(lambda session: 0.0 if waited.is_set() else 50.0, lambda session, seconds: None)
    monkeypatch.setattr(Session, "_leave_seconds", passed, raising=False)
    monkeypatch.setattr(Child, "drop", behind)
    with working(worker):
        all_underway(store, jobs)
        (process,) = training_processes()
        (scope, cancelled), (_, left) = jobs
        store.jobs.cancel(scope, cancelled.id)
        assert waited.wait(PATIENCE_S)
        seen = store.jobs.get(scope, left.id).progress["update"]
        wait_for(store, scope, left, lambda found: found.progress["update"] > seen + 3, PATIENCE_S)
        assert training_processes() == {process}
        assert store.jobs.get(scope, left.id).attempt == 1


def test_a_worker_that_is_told_to_stop_does_not_wait_for_a_process_that_is_stuck(store, jobs_of, worker):
    settings = worker._settings.model_copy(update={"worker_stop_seconds": 0.5})
    jobs = jobs_of("acme", 2, joint=True, wishes=LONG)
    with working(Worker(store, settings, threading.Event())):
        all_underway(store, jobs)
        (process,) = training_processes()
        os.kill(process, signal.SIGSTOP)
    assert training_processes() == set()
    for scope, job in jobs:
        assert store.jobs.get(scope, job.id).status == "queued"
        assert store.jobs.claim("another", "alone").attempt == 2  # at once: nobody crashed


def test_a_job_that_another_worker_took_leaves_and_its_neighbour_goes_on(store, jobs_of, worker):
    jobs = jobs_of("acme", 2, joint=True, wishes=LONG)
    with working(worker):
        all_underway(store, jobs)
        (process,) = training_processes()
        (scope, lost), (_, left) = jobs
        give_up, taken = time.monotonic() + PATIENCE_S, None
        while taken is None:
            assert time.monotonic() < give_up
            lapse(store, lost.id)  # as if a beat were late
            taken = store.jobs.claim("another", "alone")
        assert taken.job_id == lost.id
        seen = store.jobs.get(scope, left.id).progress["update"]
        wait_for(store, scope, left, lambda found: found.progress["update"] > seen + 3, PATIENCE_S)
        assert training_processes() == {process}
        assert store.jobs.get(scope, lost.id).attempt == 2


def test_a_job_that_writes_texts_does_so_between_its_neighbours_updates(store, jobs_of, worker, base):
    ((scope, left),) = jobs_of("acme", 1, joint=True, wishes=LONG)
    user = store.owners.create_user(scope, "writer")
    file = upload(store, scope, user, dataset(80))
    with working(worker):
        underway(store, scope, left)
        (process,) = training_processes()
        job = store.jobs.create(
            scope,
            user,
            "voice",
            [file.id],
            base_fingerprint=base.fingerprint,
            hyperparameters=Hyperparameters.from_json({"max_steps": 8, "batch_size": 8}),
            evaluation=Evaluation(metrics=("bleu", "chrf"), prompts=8, max_tokens=16),
        )
        done = ended(store, scope, job, PATIENCE_S)
        assert (done.status, done.attempt) == ("succeeded", 1)
        assert {"bleu", "chrf", "base_bleu"} <= done.result.keys()
        seen = store.jobs.get(scope, left.id).progress["update"]
        wait_for(store, scope, left, lambda found: found.progress["update"] > seen, PATIENCE_S)
        assert training_processes() == {process}


def test_a_job_whose_end_cannot_be_written_yet_does_not_halt_its_neighbours(
    store, jobs_of, worker, monkeypatch
):
    (long,) = jobs_of("acme", 1, joint=True, wishes=LONG)
    complete, tried, back = store.jobs.complete, threading.Event(), threading.Event()

    def away(*told, **more):
        tried.set()
        if not back.is_set():
            raise Unavailable("the files do not answer")
        return complete(*told, **more)

    monkeypatch.setattr(store.jobs, "complete", away)
    with working(worker):
        underway(store, *long)
        (quick,) = jobs_of("globex", 1, joint=True)
        assert tried.wait(PATIENCE_S)
        seen = store.jobs.get(*_ids(long)).progress["update"]
        wait_for(store, *long, lambda found: found.progress["update"] > seen + 3, PATIENCE_S)
        assert store.jobs.get(*_ids(quick)).status == "running"
        back.set()
        assert ended(store, *quick).status == "succeeded"
        assert len(training_processes()) == 1


def _ids(job):
    return job[0], job[1].id
