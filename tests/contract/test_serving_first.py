"""Training lets texts that are generated on the same machine by: who says so, who hears it, what it does then."""

import threading
import time

import pytest
from database_making import everything
from service_making import complete
from sqlalchemy import update
from store_making import upload
from test_trainer_jobs import LONG, underway, working
from trainer_making import dataset, order
from waiting import PATIENCE_S, wait_until

from prefix_store.hyperparameters import Hyperparameters
from prefix_store.tables import processes
from trainer_worker.child_process import Child
from trainer_worker.pace import Pace
from trainer_worker.settings import WorkerSettings
from trainer_worker.worker import Worker

DEAD_S = 60.0
SLOW = 1 / 500  # of the time: a step of a millisecond is followed by half a second


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"process_dead_after": DEAD_S})


def test_texts_of_this_machine_are_counted_while_their_process_lives(store):
    one, other, far = (store.feed.join("service") for _ in range(3))
    assert store.feed.generating() == 0
    store.feed.beat(one, 0, 3)
    store.feed.beat(other, 0, 4)
    store.feed.beat(far, 0, 50)
    with everything(store) as connection:
        connection.execute(update(processes).where(processes.c.id == far).values(machine="another"))
    assert store.feed.generating() == 7
    store.feed.leave(other)
    assert store.feed.generating() == 3
    with everything(store) as connection:
        older = processes.c.beat_at - (DEAD_S + 1)
        connection.execute(update(processes).where(processes.c.id == one).values(beat_at=older))
    assert store.feed.generating() == 0


def test_a_service_tells_that_it_generates_and_that_it_no_longer_does(own_service):
    tenant = own_service.tenant()
    assert own_service.store.feed.generating() == 0
    seen = []

    def ask():
        long = {"max_tokens": 200, "min_tokens": 200}
        while not seen:
            assert complete(tenant, own_service.base.name, **long).status_code == 200

    asking = threading.Thread(target=ask)
    asking.start()
    wait_until(lambda: own_service.store.feed.generating() > 0)
    seen.append(True)
    asking.join(PATIENCE_S)
    wait_until(lambda: own_service.store.feed.generating() == 0)


def test_a_worker_trains_slower_beside_texts_and_goes_on_when_they_end(store, tenant, alice, base, folder):
    file = upload(store, tenant, alice, dataset())
    job = store.jobs.create(
        tenant, alice, "voice", [file.id], hyperparameters=Hyperparameters.from_json(LONG), seed=1
    )
    settings = WorkerSettings(base_model=folder, worker_threads=1, worker_share_beside_texts=SLOW)
    service = store.feed.join("service")

    def done():
        return store.jobs.get(tenant, job.id).progress["update"]

    with working(Worker(store, settings, threading.Event())):
        underway(store, tenant, job)
        wait_until(lambda: done() > 20)
        seen = []
        for _ in range(12):
            store.feed.beat(service, 0, 2)
            time.sleep(0.5)
            seen.append((done(), time.monotonic()))
        slow, seconds = (last - first for first, last in zip(seen[5], seen[-1], strict=True))
        # what was under way at the start has been told by then
        store.feed.beat(service, 0, 0)
        before = done()
        wait_until(lambda: done() > before + 20)
    assert slow < 4 * seconds


def test_a_child_rests_between_steps_until_it_may_go_on(folder):
    with Child(order(wishes=LONG).frames(folder, "", 1)) as child:
        heard(child, 5)
        child.go_at(SLOW)
        heard(child, 1)
        time.sleep(1)
        while child.hear(0.1) is not None:  # of before it heard
            pass
        # Behind a moment in which this thread stood still more than these have come already.
        assert sum(heard(child, 3) > 2 * 0.3 for _ in range(5)) >= 3
        child.go_at(1.0)
        heard(child, 100)


def heard(child, count):
    """Hear of so many steps; how long that took."""
    began = time.monotonic()
    while count:
        assert time.monotonic() < began + PATIENCE_S
        frame = child.hear(0.1)
        count -= frame is not None and frame.kind == "progress"
    return time.monotonic() - began


def test_a_rest_ends_with_news():
    pace = Pace()
    pace.rest(1000.0)  # at full speed there is none
    pace.take(SLOW)
    pace.rest(0.0)
    done = threading.Event()
    resting = threading.Thread(target=lambda: (pace.rest(1000.0), done.set()))
    resting.start()
    assert not done.wait(0.2)
    pace.take(1.0)
    assert done.wait(PATIENCE_S)
    resting.join()
