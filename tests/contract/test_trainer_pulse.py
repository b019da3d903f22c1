"""Leases of jobs whose session is busy with something else."""

import subprocess
import sys
import threading
import time

import pytest
from database_making import everything
from production_making import beside
from sqlalchemy import select, update
from store_making import upload
from trainer_making import dataset

from prefix_store import StoreSettings
from prefix_store.errors import LeaseLost
from prefix_store.tables import jobs
from trainer_worker.attempt import Attempt
from trainer_worker.owed import Owed
from trainer_worker.pulse import Pulse
from trainer_worker.session import Session
from trainer_worker.settings import WorkerSettings

LEASE_S = 8.0  # four beats: a busy machine may be late with some


@pytest.fixture
def settings(tmp_path, database_url):
    return StoreSettings(
        data_dir=tmp_path, database_url=database_url, lease_seconds=LEASE_S, **beside(database_url)
    )


@pytest.fixture
def attempt(store, tenant, alice):
    file = upload(store, tenant, alice, dataset())
    store.jobs.create(tenant, alice, "voice", [file.id])
    return Attempt(store, WorkerSettings(), store.jobs.claim("mine"))


def test_a_lease_is_kept_while_the_session_is_busy_and_runs_out_after_it(store, attempt):
    with Pulse(lambda: [attempt]):
        busy_until = time.monotonic() + 2.5 * LEASE_S
        while time.monotonic() < busy_until:
            assert store.jobs.claim("rival") is None
            time.sleep(0.1)
        attempt.check()
    give_up = time.monotonic() + 120
    while (taken := store.jobs.claim("rival")) is None:
        assert time.monotonic() < give_up
        time.sleep(0.1)
    assert taken.job_id == attempt.claim.job_id
    with pytest.raises(LeaseLost):
        attempt.beat(at_once=True)


def test_a_cancellation_is_found_by_the_beat_and_told_to_the_session(store, tenant, attempt):
    with Pulse(lambda: [attempt]):
        store.jobs.cancel(tenant, attempt.claim.job_id)
        give_up = time.monotonic() + 120
        while attempt._ended is None:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        with pytest.raises(LeaseLost):
            attempt.check()


def test_who_is_seated_later_is_kept_too_and_nobody_else(store, attempt):
    seats, beaten = [], threading.Event()
    with Pulse(lambda: list(seats)):
        time.sleep(0.5)
        before = attempt._beaten
        seats.append(attempt)
        give_up = time.monotonic() + 120
        while attempt._beaten == before:
            assert time.monotonic() < give_up
            beaten.wait(0.05)


def test_a_lease_is_kept_while_a_jobs_files_are_read(store, attempt, monkeypatch):
    read = store.datasets.read

    def slow(*which):
        time.sleep(2.0 * LEASE_S)
        return read(*which)

    monkeypatch.setattr(store.datasets, "read", slow)
    assert Session._read(attempt)
    attempt.check()
    assert store.jobs.claim("rival") is None


def _began(store, tenant, attempt):
    Session(store, WorkerSettings(), "mine", lambda: False, Owed()).run(attempt.claim)
    with everything(store) as connection:
        row = connection.execute(select(jobs).where(jobs.c.id == attempt.claim.job_id)).one()
    return row.status, row.crashes, row.run_at > row.created_at + 30


def test_a_machine_that_starts_no_process_is_not_the_jobs_fault(store, tenant, attempt, monkeypatch):
    def none(*_, **__):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(subprocess, "Popen", none)
    assert _began(store, tenant, attempt) == ("queued", 0, True)
    assert store.jobs.events(tenant, attempt.claim.job_id)[0].level == "warn"


def test_a_process_that_ends_before_it_looks_at_a_job_is_not_the_jobs_fault(
    store, tenant, attempt, monkeypatch
):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert _began(store, tenant, attempt) == ("queued", 0, True)


def test_a_job_that_no_process_ever_looks_at_is_not_tried_for_ever(store, tenant, attempt, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setattr("trainer_worker.attempt._MOST_NOT_BEGUN", 0)
    assert _began(store, tenant, attempt) == ("queued", 1, False)


def test_that_a_job_was_often_given_back_does_not_make_the_machines_faults_its_own(
    store, tenant, attempt, monkeypatch
):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    for _ in range(10):  # deploys, or a storage that is away
        store.jobs.release(attempt.claim)
        attempt = Attempt(store, WorkerSettings(), store.jobs.claim("mine"))
    assert attempt.claim.attempt == 11
    told = []
    for _ in range(6):
        told.append(_began(store, tenant, attempt)[:2])
        with everything(store) as connection:
            connection.execute(update(jobs).values(run_at=0.0))
        attempt = Attempt(store, WorkerSettings(), store.jobs.claim("mine"))
    assert told == [("queued", 0)] * 5 + [("queued", 1)]
