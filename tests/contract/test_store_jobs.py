"""Jobs: fences, leases, lineage, the gate's last word."""

import pytest
from database_making import everything
from production_making import damage
from sqlalchemy import select, update
from store_making import BASE, complete, files_on_disk, lapse, publish, queue, trained, upload

from prefix_store.db import db_now
from prefix_store.errors import Conflict, Invalid, LeaseLost, NotFound
from prefix_store.evaluation import Evaluation
from prefix_store.hyperparameters import Hyperparameters
from prefix_store.scope import Admin
from prefix_store.tables import jobs


def test_what_a_job_was_asked_reads_back(store, tenant, alice):
    file, held_out = upload(store, tenant, alice), upload(store, tenant, alice)
    wishes = Hyperparameters(n_epochs=2, init_text="warm", text_start="0")
    options = {"suffix": "voice", "metadata": {"run": "a"}, "method": {"type": "supervised"}, "seed": 7}
    job = queue(
        store,
        tenant,
        alice,
        "voice",
        [file.id],
        validation_file=held_out.id,
        hyperparameters=wishes,
        model="gpt2-mini",
        **options,
    )
    assert store.jobs.get(tenant, job.id) == job
    assert (job.status, job.prefix, job.model, job.attempt) == ("queued", "alice:voice", "gpt2-mini", 0)
    assert (job.training_files, job.validation_file) == ((file.id,), held_out.id)
    assert (job.hyperparameters, job.base_fingerprint) == (wishes, BASE)
    assert {name: getattr(job, name) for name in options} == options


def test_what_a_run_goes_by_stands_beside_what_was_asked(store, tenant, alice):
    options = {"hyperparameters": Hyperparameters(n_epochs=2), "idempotency_key": "k"}
    files = [upload(store, tenant, alice).id]
    job = queue(store, tenant, alice, "voice", files, **options)
    assert job.resolved is None
    for size in (8, 4):  # of two attempts
        claim = store.jobs.claim("w")
        store.jobs.resolved(claim, {"n_epochs": 2, "batch_size": size})
        store.jobs.release(claim)
    found = store.jobs.get(tenant, job.id)
    assert found.resolved == {"n_epochs": 2, "batch_size": 4}
    assert found.hyperparameters == Hyperparameters(n_epochs=2)
    assert queue(store, tenant, alice, "voice", files, **options) == found  # the same request, repeated


def test_a_finished_job_says_what_it_became(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.event(claim, "info", "metrics", "update 1", {"loss": 2.5})
    assert store.jobs.heartbeat(claim, {"update": 1}) == "continue"
    assert store.jobs.get(tenant, claim.job_id).progress == {"update": 1}
    complete(store, claim)
    job = store.jobs.get(tenant, claim.job_id)
    assert (job.status, job.fine_tuned_model, job.promoted) == ("succeeded", "alice:voice@1", True)
    assert (job.trained_tokens, job.result) == (99, {"held_out_loss": 1.0})
    assert job.created_at <= job.started_at <= job.finished_at
    told = store.jobs.events(tenant, job.id)
    assert [event.data for event in told if event.type == "metrics"] == [{"loss": 2.5}]
    assert all(event.id.startswith("ftevent-") for event in told)
    assert store.jobs.heartbeat(claim) == "lost"


def test_a_version_that_was_compared_with_another_live_one_waits_as_a_candidate(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    slow = store.jobs.claim("w")
    compared = store.jobs.live(slow)
    assert compared is None
    store.jobs.release(slow)
    again = store.jobs.claim("w")
    complete(store, again)
    job = queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    done = store.jobs.complete(claim, trained(), promote=True, compared_with=None, reason="beats the base")
    assert (done.full_name, done.promoted) == ("alice:voice@2", False)
    assert "another version went live" in done.reason
    assert store.registry.resolve(tenant, "alice:voice").number == 1
    assert store.jobs.get(tenant, job.id).promoted is False
    assert any("waits as a candidate" in event.message for event in store.jobs.events(tenant, job.id))


def test_a_fence_is_never_given_twice(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    seen = []
    for _ in range(4):
        claim = store.jobs.claim("w")
        seen.append(claim.attempt)
        store.jobs.release(claim)
        with pytest.raises(LeaseLost):
            store.jobs.event(claim, "info", "message", "late")
    assert seen == [1, 2, 3, 4]


def ahead(store, column):
    """Seconds until a moment of the only job, by the database's clock."""
    with everything(store) as connection:
        return connection.execute(select(column - db_now())).scalar()


def test_a_released_job_waits_out_its_delay(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.release(claim, crashed=True, delay_seconds=60)
    assert store.jobs.claim("w") is None
    assert 30 < ahead(store, jobs.c.run_at) <= 60
    with everything(store) as connection:
        connection.execute(update(jobs).where(jobs.c.id == claim.job_id).values(run_at=jobs.c.run_at - 60))
    assert store.jobs.claim("w").attempt == 2


def test_a_job_whose_workers_all_vanish_fails_with_its_checkpoint_gone(store, tenant, alice):
    job = queue(store, tenant, alice, "voice")
    for attempt in (1, 2, 3):
        claim = store.jobs.claim("w")
        assert claim.attempt == attempt
        store.jobs.save_checkpoint(claim, attempt, b"state")
        lapse(store, job.id)
    assert store.jobs.claim("w") is None
    ended = store.jobs.get(tenant, job.id)
    assert (ended.status, ended.error.code) == ("failed", "worker_crashed")
    store.erasure.resume()
    assert not any(place.object_id.startswith("state") for place in files_on_disk(store))


def test_a_heartbeat_keeps_the_lease(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    for _ in range(3):
        lapse(store, claim.job_id)  # and nobody has seen it yet
        assert store.jobs.heartbeat(claim) == "continue"
        assert 30 < ahead(store, jobs.c.lease_until) <= store.settings.lease_seconds
        assert store.jobs.claim("other") is None
    lapse(store, claim.job_id)
    assert store.jobs.claim("other").attempt == 2


def test_a_job_that_fails_says_why_and_is_not_tried_again(store, tenant, alice):
    job = queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"state")
    store.jobs.fail(claim, "invalid_training_file", "under 10 rows", "training_file")
    ended = store.jobs.get(tenant, job.id)
    assert (ended.status, ended.error.code, ended.error.param) == (
        "failed",
        "invalid_training_file",
        "training_file",
    )
    assert store.jobs.claim("w") is None
    assert len(files_on_disk(store)) == 1


@pytest.mark.parametrize("end", ["cancel", "prefix", "file", "user"])
def test_a_worker_hears_of_the_end_and_can_write_nothing(store, tenant, alice, end):
    file = upload(store, tenant, alice)
    job = queue(store, tenant, alice, "voice", [file.id])
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"state")
    {
        "cancel": lambda: store.jobs.cancel(tenant, job.id),
        "prefix": lambda: store.registry.delete_prefix(tenant, "alice:voice"),
        "file": lambda: store.datasets.delete(tenant, file.id),
        "user": lambda: store.erasure.begin(tenant, "alice"),
    }[end]()
    assert store.jobs.heartbeat(claim) == "cancel"
    for write in (
        lambda: store.jobs.save_checkpoint(claim, 2, b"state"),
        lambda: store.jobs.event(claim, "info", "message", "x"),
        lambda: store.jobs.resolved(claim, {"batch_size": 4}),
        lambda: store.jobs.fail(claim, "x", "x"),
        lambda: complete(store, claim),
    ):
        with pytest.raises(LeaseLost):
            write()
    store.jobs.cancelled(claim)
    store.jobs.release(claim)
    assert store.jobs.claim("w") is None
    store.erasure.resume()
    assert files_on_disk(store) <= {file.place}
    if end != "user":
        assert store.jobs.get(tenant, job.id).status == "cancelled"


def test_a_deleted_prefix_frees_its_name_but_not_its_numbers(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    job = queue(store, tenant, alice, "voice")
    seq = store.registry.delete_prefix(tenant, "alice:voice").seq
    assert seq == store.feed.position()
    assert store.jobs.get(tenant, job.id).prefix == "alice:voice"
    with pytest.raises(NotFound):
        store.registry.delete_prefix(tenant, "alice:voice")
    assert publish(store, tenant, alice, "voice").full_name == "alice:voice@2"


def test_a_start_hands_on_what_it_learned_from(store, tenant, alice):
    task = store.owners.ensure_task(tenant, "e2e")
    own = upload(store, tenant, task)
    publish(store, tenant, task, "e2e", files=[own.id])
    publish(store, tenant, task, "e2e", files=[upload(store, tenant, alice).id])
    start = store.registry.resolve(tenant, "task:e2e").version_id
    with pytest.raises(Conflict, match="another base"):
        store.jobs.create(tenant, task, "e2e", [own.id], start_version_id=start, base_fingerprint="0")
    publish(store, tenant, task, "e2e", files=[own.id], start_version_id=start)
    open_job = queue(store, tenant, task, "e2e", [own.id], start_version_id=start)
    claim = store.jobs.claim("w")
    assert store.registry.read(store.jobs.start(claim)) == b"tensor bytes"
    store.erasure.begin(tenant, "alice")
    assert store.jobs.get(tenant, open_job.id).status == "cancelled"
    assert [version.number for version in store.registry.versions(tenant, "task:e2e")] == [1]
    assert store.registry.resolve(tenant, "task:e2e").number == 1


def test_a_start_of_another_owner_does_not_exist(store, tenant, alice):
    bob = store.owners.create_user(tenant, "bob")
    publish(store, tenant, alice, "voice")
    start = store.registry.resolve(tenant, "alice:voice").version_id
    with pytest.raises(NotFound):
        queue(store, tenant, bob, "voice", start_version_id=start)


@pytest.mark.parametrize("name", ["../x", "task", "gpt2", "", "a@1"])
def test_a_bad_prefix_name_queues_nothing(store, tenant, alice, name):
    with pytest.raises(Invalid) as caught:
        queue(store, tenant, alice, name)
    assert caught.value.param == "suffix"
    assert store.jobs.list(tenant) == []


def test_a_job_needs_a_file_and_a_tasks_prefix_its_tasks_name(store, tenant, alice):
    with pytest.raises(Invalid):
        store.jobs.create(tenant, alice, "voice", [])
    with pytest.raises(Invalid):
        queue(store, tenant, store.owners.ensure_task(tenant, "e2e"), "other")


def test_jobs_and_events_are_paged_newest_first(store, tenant, alice):
    file = upload(store, tenant, alice)
    made = [
        queue(store, tenant, alice, "voice", [file.id], metadata={"odd": str(i % 2), "n": str(i)}).id
        for i in range(5)
    ]
    newest = made[::-1]
    assert [job.id for job in store.jobs.list(tenant)] == newest
    assert [job.id for job in store.jobs.list(tenant, limit=2)] == newest[:2]
    assert [job.id for job in store.jobs.list(tenant, after=newest[1], limit=2)] == newest[2:4]
    assert [job.id for job in store.jobs.list(tenant, metadata={"odd": "1"})] == [made[3], made[1]]
    assert store.jobs.list(tenant, metadata={"odd": "1", "n": "2"}) == []
    claim = store.jobs.claim("w")
    for i in range(5):
        store.jobs.event(claim, "info", "message", str(i))
    page = store.jobs.events(tenant, claim.job_id, limit=3)
    assert [event.message for event in page] == ["4", "3", "2"]
    rest = store.jobs.events(tenant, claim.job_id, after=page[-1].id)
    assert [event.message for event in rest][:2] == ["1", "0"]
    assert store.jobs.counts() == {"queued": 4, "running": 1}


def test_a_corrupt_checkpoint_is_as_none(store, tenant, alice):
    queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"state")
    place = next(place for place in files_on_disk(store) if place.object_id.startswith("state"))
    damage(store, place, lambda data: data[:-1])
    assert store.jobs.load_checkpoint(claim) is None


def test_a_version_that_the_gate_kept_back_does_not_go_live_by_the_removal_of_another(store, tenant, alice):
    for promote in (True, False):
        publish(store, tenant, alice, "voice", promote=promote)
    last = upload(store, tenant, alice)
    publish(store, tenant, alice, "voice", files=[last.id])
    store.datasets.delete(tenant, last.id, versions=True)
    assert store.registry.resolve(tenant, "alice:voice").number == 1


@pytest.fixture
def joint(store):
    """Two tenants that let their jobs be trained with others', with a user each."""
    found = []
    for name in ("initech", "umbrella"):
        scope = store.keys.verify(store.tenants.create(Admin(), name, joint_training=True)[1])
        found.append((scope, store.owners.create_user(scope, "alice")))
    return found


def test_only_who_lets_them_is_seated_beside_others_and_nobody_is_overtaken(store, tenant, alice, joint):
    (one, her), (two, him) = joint
    queue(store, one, her, "voice")
    first = store.jobs.claim("w", "first")
    assert first.joint
    shy, bold = queue(store, tenant, alice, "voice"), queue(store, two, him, "voice")
    assert store.jobs.claim("w", "beside") is None  # the next is not to be trained with others
    assert store.jobs.claim("v", "first").job_id == shy.id
    beside = store.jobs.claim("w", "beside")
    assert (beside.job_id, beside.joint) == (bold.id, True)
    queue(store, one, her, "other")
    assert not store.jobs.claim("w").joint


@pytest.mark.parametrize("how", ["released", "expired"])
def test_a_joint_crash_counts_for_nobody_and_the_job_is_next_alone(store, joint, how):
    ((scope, alice), _) = joint
    job = queue(store, scope, alice, "voice")
    for crash in range(4):
        claim = store.jobs.claim("w", "first")
        assert (claim.job_id, claim.joint) == (job.id, crash == 0)
        if how == "released":
            store.jobs.release(claim, crashed=True)
        else:
            lapse(store, job.id)
    assert store.jobs.claim("w", "first") is None
    ended = store.jobs.get(scope, job.id)
    assert (ended.status, ended.error.code, ended.attempt) == ("failed", "worker_crashed", 4)


def test_a_job_whose_worker_is_gone_waits_as_a_queued_one_does(store, tenant, other_tenant, alice):
    long = queue(store, tenant, alice, "voice")
    claim = store.jobs.claim("w")
    assert claim.job_id == long.id
    zoe = store.owners.create_user(other_tenant, "zoe")
    queue(store, other_tenant, zoe, "voice")
    assert store.jobs.another_waits(claim, 0.0)
    hers = store.jobs.claim("v")
    assert not store.jobs.another_waits(claim, 0.0)
    lapse(store, hers.job_id)
    assert store.jobs.another_waits(claim, 0.0)
    assert not store.jobs.another_waits(claim, 60.0)
    store.jobs.cancel(other_tenant, hers.job_id)
    assert not store.jobs.another_waits(claim, 0.0)


def test_a_joint_job_that_was_given_back_may_be_joint_again(store, joint):
    ((scope, alice), _) = joint
    queue(store, scope, alice, "voice")
    store.jobs.release(store.jobs.claim("w", "first"))
    assert store.jobs.claim("w", "first").joint


@pytest.mark.parametrize(
    ("of_tomorrow", "evaluation"),
    [
        ({"hyperparameters": {"of_tomorrow": 1, "n_epochs": 2}}, None),
        ({"hyperparameters": {"init": "of_tomorrow", "n_epochs": 2}, "evaluation": {}}, Evaluation()),
        ({"hyperparameters": {"n_epochs": 2}, "evaluation": {"metrics": ["of_tomorrow"]}}, None),
        ({"hyperparameters": {"n_epochs": 2}, "evaluation": {"of_tomorrow": 1}}, None),
    ],
)
def test_a_job_of_a_later_release_is_shown_and_left_to_a_worker_that_knows_it(
    store, tenant, alice, of_tomorrow, evaluation
):
    later, known = queue(store, tenant, alice, "a"), queue(store, tenant, alice, "b")
    with everything(store) as connection:
        mine = jobs.c.id == later.id
        spec = connection.execute(select(jobs.c.spec).where(mine)).scalar_one()
        connection.execute(update(jobs).where(mine).values(spec=spec | of_tomorrow))
    shown = store.jobs.get(tenant, later.id)
    assert (shown.later, shown.hyperparameters.n_epochs, shown.evaluation) == (True, 2, evaluation)
    assert {job.id for job in store.jobs.list(tenant)} == {later.id, known.id}
    assert store.jobs.claim("w").job_id == known.id
    assert store.jobs.claim("w") is None
    with everything(store) as connection:
        row = connection.execute(select(jobs).where(mine)).one()
        assert (row.status, row.attempt, row.crashes) == ("queued", 0, 0)
        connection.execute(update(jobs).where(mine).values(spec=spec, run_at=0.0))
    assert store.jobs.claim("w").job_id == later.id


@pytest.mark.parametrize(
    "of_tomorrow", [{"hyperparameters": None}, {"suffix": {"of": 1}, "training_files": 1}]
)
def test_a_job_that_cannot_be_read_at_all_halts_nobody(store, tenant, alice, of_tomorrow):
    first, known = queue(store, tenant, alice, "a"), queue(store, tenant, alice, "b")
    with everything(store) as connection:
        mine = jobs.c.id == first.id
        spec = connection.execute(select(jobs.c.spec).where(mine)).scalar_one()
        connection.execute(update(jobs).where(mine).values(spec=spec | of_tomorrow))
    assert store.jobs.claim("w").job_id == known.id
    assert store.jobs.claim("w") is None


def test_why_a_job_failed_is_shown_though_a_later_release_says_more_of_it(store, tenant, alice):
    job = queue(store, tenant, alice, "a")
    store.jobs.fail(store.jobs.claim("w"), "invalid_dataset", "no rows", "training_file")
    with everything(store) as connection:
        mine = jobs.c.id == job.id
        error = connection.execute(select(jobs.c.error).where(mine)).scalar_one()
        connection.execute(update(jobs).where(mine).values(error=error | {"of_tomorrow": 1}))
    (shown,) = store.jobs.list(tenant)
    assert (shown.error.code, shown.error.param) == ("invalid_dataset", "training_file")
