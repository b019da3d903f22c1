"""Jobs that are evaluated by the texts they lead to, what they leave, and what a gate keeps from going live."""

import json
import threading

import pytest
from store_making import files_on_disk, upload
from test_trainer_jobs import ended, messages, working
from trainer_making import dataset

from prefix_store.errors import Invalid, NotFound
from prefix_store.evaluation import METRICS, Evaluation
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.scope import Admin
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

QUICK = Evaluation(metrics=METRICS, prompts=6, max_tokens=8)

# What is trained and how it is judged is no matter of the database, so once is enough.
pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@pytest.fixture
def queue(store, tenant, alice, base):
    def queued(data, evaluation, steps=8, validation=None):
        wishes = Hyperparameters.from_json({"max_steps": steps, "batch_size": 8})
        more = {
            "base_fingerprint": base.fingerprint,
            "seed": 1,
            "hyperparameters": wishes,
            "evaluation": evaluation,
        }
        file = upload(store, tenant, alice, data)
        held_out = None if validation is None else validation.id
        return store.jobs.create(tenant, alice, "voice", [file.id], validation_file=held_out, **more)

    return queued


@pytest.fixture
def trained(store, tenant, folder):
    """Have a worker do a job to its end."""

    def done(job):
        settings = WorkerSettings(base_model=folder, worker_threads=1, worker_poll_seconds=0.05)
        with working(Worker(store, settings, threading.Event())):
            return ended(store, tenant, job, 120)

    return done


def test_a_job_leaves_its_numbers_and_a_picture_as_files_of_its_owner(store, tenant, alice, queue, trained):
    job = trained(queue(dataset(), QUICK))
    assert job.status == "succeeded"
    files = [store.datasets.get(tenant, file_id) for file_id in job.result_files]
    assert [(file.filename, file.purpose, file.owner) for file in files] == [
        ("results.json", "fine-tune-results", alice),
        ("losses.svg", "fine-tune-results", alice),
    ]
    kept = {
        purpose: len(store.datasets.list(tenant, purpose=purpose))
        for purpose in ("fine-tune", files[0].purpose, "other")
    }
    assert kept == {"fine-tune": 1, "fine-tune-results": 2, "other": 0}
    told = json.loads(store.datasets.read(tenant, files[0].id))
    assert told["metrics"]["held_out_loss"] == job.result["held_out_loss"]
    assert set(told["texts"]["prefix"]) == set(METRICS)
    assert job.result["base_bleu"] == told["texts"]["base"]["bleu"]
    assert store.datasets.read(tenant, files[1].id).lstrip().startswith(b"<?xml")
    for file in files:  # numbers of a run are nothing to learn from
        with pytest.raises(Invalid) as refused:
            store.jobs.create(tenant, alice, "voice", [file.id])
        assert refused.value.param == "training_file"


def test_a_job_that_asked_for_nothing_leaves_its_losses(store, tenant, queue, trained):
    job = trained(queue(dataset(), None))
    told = json.loads(store.datasets.read(tenant, job.result_files[0]))
    assert told["evaluation"] is None
    assert told["texts"] == {}
    assert len(told["curve"]) >= 2


def test_result_files_go_with_their_owner(store, tenant, alice, queue, trained):
    job = trained(queue(dataset(), None))
    assert len(files_on_disk(store)) == 4  # data, prefix, two results
    erasure = store.erasure.begin(tenant, alice.label)
    assert store.erasure.purge(erasure.id).state == "done"
    assert not files_on_disk(store)
    for file_id in job.result_files:
        with pytest.raises(NotFound):
            store.datasets.get(tenant, file_id)


def test_a_job_of_a_tenant_that_allows_joint_training_may_be_evaluated_beside_others(store, folder):
    scope = store.keys.verify(store.tenants.create(Admin(), "joined", joint_training=True)[1])
    user = store.owners.create_user(scope, "bob")
    file = upload(store, scope, user, dataset())
    store.jobs.create(scope, user, "voice", [file.id], evaluation=QUICK)
    assert store.jobs.claim("worker", "first").joint


def poisoned(data):
    """Every completion says the same bad thing."""
    return lines([{**json.loads(line), "completion": "zzzzzzzz"} for line in data.splitlines()])


def lines(rows):
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("gate", ["loss", "chrf"])
def test_poisoned_data_does_not_go_live(store, tenant, alice, queue, trained, gate):
    """Judged by rows that the tenant trusts: those held out of spoilt data would be spoilt too."""
    data = dataset(200, seed=1)
    trusted = upload(store, tenant, alice, dataset(60, seed=2))
    evaluation = Evaluation(metrics=("chrf",), prompts=40, max_tokens=12, gate=gate)
    good = trained(queue(data, evaluation, 150, trusted))
    assert good.promoted, good.result
    spoilt = trained(queue(poisoned(data), evaluation, 150, trusted))
    assert spoilt.status == "succeeded"
    assert spoilt.promoted is False
    assert store.registry.resolve(tenant, "alice:voice").number == 1
    told = messages(store, tenant, spoilt)
    assert any("does not beat" in message and "live version's" in message for message in told)
