"""A prefix that is called while it trains: by whom, which of its checkpoints answers, and how it ends."""

import time

import pytest
from production_making import damage
from service_making import complete, error_of, serving, slowed
from test_service_hostile import slow_reader
from test_service_revocation import Reader, started
from waiting import Hanging, lasting, wait_until

from prefix_engine.testing import random_prefix

PROMPT = "tell me about the eagle, " * 4  # 100 tokens of the tiny base
STORE = {"lease_seconds": 600.0}  # nobody beats here


@pytest.fixture
def acme(service):
    tenant = service.tenant()
    tenant.alice = service.user(tenant, "alice")
    return tenant


@pytest.fixture
def claim(service, acme):
    """A job of alice's that runs, without a checkpoint."""
    return service.claim(acme.scope, "alice", "quiz")


@pytest.fixture
def slow(service):
    with slowed(service):
        yield


def name_of(claim, step=None):
    return f"{claim.job.prefix}@{claim.job_id}" + ("" if step is None else f"-step-{step}")


def text_of(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


def test_a_running_job_is_called_by_its_name_and_says_which_checkpoint_answered(service, acme, claim):
    name = name_of(claim)
    refused = complete(acme.alice, name)
    assert (refused.status_code, error_of(refused)["code"]) == (404, "no_checkpoint")
    assert "has no checkpoint yet" in error_of(refused)["message"]
    assert complete(acme.alice, "alice:quiz").status_code == 404  # never the base model
    assert acme.get(f"/v1/fine_tuning/jobs/{claim.job_id}/checkpoints").json()["data"] == []
    service.keep(claim, 7, seed=3)
    service.publish(acme.scope, "alice", "same", seed=3)
    for client in (acme.alice, acme):
        answer = complete(client, name)
        assert text_of(answer) == text_of(complete(client, "alice:same"))
        assert (answer.json()["model"], answer.json()["prefix_version"]) == (name, name_of(claim, 7))
        assert text_of(complete(client, name_of(claim, 7))) == text_of(answer)
    assert text_of(complete(acme, name)) != text_of(complete(acme, "tiny"))
    model = acme.alice.get(f"/v1/models/{name}").json()
    assert (model["id"], model["owned_by"], model["prefix_length"]) == (name, "alice", 4)
    assert model["prefix_version"] == name_of(claim, 7)


def test_the_last_checkpoint_is_listed_as_openai_lists_them(service, acme, claim):
    path = f"/v1/fine_tuning/jobs/{claim.job_id}/checkpoints"
    service.keep(claim, 7)
    service.keep(claim, 9, seed=1)
    page = acme.alice.get(path).json()
    (kept,) = page["data"]
    assert (page["object"], page["has_more"], page["first_id"]) == ("list", False, kept["id"])
    assert kept["id"].startswith("ckpt-")
    assert kept["object"] == "fine_tuning.job.checkpoint"
    assert kept["fine_tuning_job_id"] == claim.job_id
    assert kept["fine_tuned_model_checkpoint"] == name_of(claim)
    assert (kept["step_number"], kept["metrics"]) == (9, {"step": 9, "valid_loss": 3.0})
    assert kept["created_at"] >= int(claim.job.created_at)
    assert acme.alice.get(path, params={"after": kept["id"]}).json()["data"] == []
    absent = acme.alice.get(path, params={"after": "ckpt-0"})
    assert (absent.status_code, error_of(absent)["code"]) == (404, "not_found")


@pytest.mark.parametrize("promote", [True, False])
def test_a_job_that_succeeded_answers_from_what_it_became(service, acme, claim, promote):
    service.keep(claim, 7)
    service.complete(claim, random_prefix(service.base, 4, seed=5), promote=promote)
    answer = complete(acme.alice, name_of(claim))
    assert answer.json()["prefix_version"] == "alice:quiz@1"
    assert text_of(answer) == text_of(complete(acme.alice, "alice:quiz@1"))
    assert complete(acme.alice, "alice:quiz").status_code == (200 if promote else 404)
    assert acme.alice.get(f"/v1/models/{name_of(claim)}").json()["prefix_version"] == "alice:quiz@1"


def test_only_keys_that_may_see_the_job_call_its_checkpoint(service, acme, claim):
    service.keep(claim, 7)
    bob, carol = service.user(acme, "bob"), service.user(service.tenant(), "carol")
    generating = service.user(acme, "alice", scopes=["generate"])
    refused = complete(generating, name_of(claim))
    assert (refused.status_code, error_of(refused)["code"]) == (403, "insufficient_permissions")
    assert refused.text == complete(generating, f"alice:quiz@ftjob-{'0' * 22}").text
    absent = f"alice:quiz@ftjob-{'0' * 22}"
    answers = {
        complete(client, asked).text.replace(asked, "")
        for client in (bob, carol)
        for asked in (name_of(claim), name_of(claim, 7), absent)
    }
    assert len(answers) == 1
    file = service.upload(acme, task="e2e").json()["id"]
    task = service.claim(acme.scope, "task:e2e", "e2e", [file])
    service.keep(task, 7)
    assert complete(acme, name_of(task)).status_code == 200
    assert complete(acme.alice, name_of(task)).status_code == 404
    assert error_of(complete(acme.alice, name_of(task)))["code"] == "model_not_found"


def test_a_job_starts_from_what_another_became_and_not_from_its_checkpoint(service, acme, claim):
    service.keep(claim, 7)
    file = service.upload(acme.alice).json()["id"]
    body = {"model": name_of(claim), "training_file": file, "suffix": "next"}
    refused = acme.alice.post("/v1/fine_tuning/jobs", json=body)
    assert (refused.status_code, error_of(refused)["param"]) == (400, "model")
    service.complete(claim, random_prefix(service.base, 4))
    made = acme.alice.post("/v1/fine_tuning/jobs", json=body)
    assert made.status_code == 200
    assert acme.alice.post(f"/v1/fine_tuning/jobs/{made.json()['id']}/cancel").status_code == 200


def test_the_next_checkpoint_answers_new_requests_and_not_those_that_run(service, acme, claim, slow):
    service.keep(claim, 7, seed=1)
    asked = {"max_tokens": 100, "min_tokens": 100, "prompt": "x", "temperature": 0}
    before = text_of(complete(acme, name_of(claim), **asked))
    (reader,) = started([Reader(service, acme.key, name_of(claim), tokens=100, temperature=0)])
    service.keep(claim, 9, seed=2)
    answer = complete(acme, name_of(claim), **asked)
    assert answer.json()["prefix_version"] == name_of(claim, 9)
    assert text_of(answer) != before
    refused = complete(acme, name_of(claim, 7))
    assert (refused.status_code, error_of(refused)["code"]) == (404, "no_checkpoint")
    reader.join(120)
    assert b"[DONE]" in reader.data
    assert not reader.errors
    assert "".join(reader.texts) == before


def test_a_prompt_is_never_reused_behind_another_checkpoint(service, acme, claim):
    def cached():
        usage = complete(acme.alice, name_of(claim), PROMPT).json()["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    service.keep(claim, 7, seed=1)
    assert [cached(), cached()] == [0, 96]
    service.keep(claim, 9, seed=2)
    assert [cached(), cached()] == [0, 96]


def test_a_checkpoint_that_is_replaced_while_it_is_looked_up_is_looked_up_again(
    service, acme, claim, monkeypatch
):
    service.keep(claim, 7, seed=1)
    registry = service.parts.store.registry
    resolve, turns = registry.resolve, []

    def replaced(scope, name):
        found = resolve(scope, name)
        if not turns:
            service.keep(claim, 9, seed=2)
        turns.append(found.full_name)
        return found

    monkeypatch.setattr(registry, "resolve", replaced)
    answer = complete(acme, name_of(claim))
    assert turns == [name_of(claim, 7), name_of(claim, 9)]
    assert answer.json()["prefix_version"] == name_of(claim, 9)


def test_a_checkpoint_that_is_replaced_before_the_engine_has_it_still_answers(
    service, acme, claim, monkeypatch
):
    service.keep(claim, 7, seed=1)
    service.publish(acme.scope, "alice", "same", seed=1)
    residency = service.parts.residency
    note = residency.note

    def late(resolved):
        if resolved.number is None:
            service.keep(claim, 9, seed=2)
        note(resolved)

    monkeypatch.setattr(residency, "note", late)
    answer = complete(acme, name_of(claim))
    assert answer.json()["prefix_version"] == name_of(claim, 7)
    assert text_of(answer) == text_of(complete(acme, "alice:same"))
    assert residency._at_hand == {}


def test_requests_of_one_checkpoint_hold_its_bytes_once(service, acme, claim, slow, monkeypatch):
    service.keep(claim, 7)
    registry, residency = service.parts.store.registry, service.parts.residency
    reading, gone = Hanging(registry.read), []

    class Copy(bytes):
        def __del__(self):
            gone.append(len(self))

    both, entered = residency.read, []

    async def counted(*told):
        entered.append(told)
        return await both(*told)

    async def late(*_):
        return Copy(b"read before the others had it at hand")

    monkeypatch.setattr(registry, "read", reading)
    monkeypatch.setattr(residency, "read", counted)
    readers = [Reader(service, acme.key, name_of(claim), seed=seed) for seed in range(4)]
    wait_until(lambda: len(entered) == 4)
    assert service.parts.storing.borrowed_tokens == 1
    reading.go_on.set()
    started(readers)
    assert len(reading.calls) == 1
    monkeypatch.setattr(residency, "read", late)
    with lasting(service.parts.engine):
        readers += started([Reader(service, acme.key, name_of(claim))])
        assert gone
        assert b"[DONE]" not in readers[-1].data
    for reader in readers:
        reader.join(120)
        assert b"[DONE]" in reader.data
    wait_until(lambda: residency._at_hand == residency._reading == {})


def test_files_that_do_not_come_keep_nobody_waiting_who_needs_none(service, acme, claim, monkeypatch):
    service.keep(claim, 7)
    file = service.upload(acme, user="alice").json()["id"]
    store = service.parts.store
    prefixes, files = Hanging(store.registry.read), Hanging(store.datasets.read)
    monkeypatch.setattr(store.registry, "read", prefixes)
    monkeypatch.setattr(store.datasets, "read", files)
    waiting = [Reader(service, acme.key, name_of(claim), tokens=2, seed=seed) for seed in range(50)]
    wait_until(lambda: prefixes.calls or files.calls)
    transfers = [slow_reader(service, acme.key, file) for _ in range(4)]
    for _ in range(5):
        assert acme.get("/v1/models", timeout=20).status_code == 200
        time.sleep(0.1)
    prefixes.go_on.set()
    files.go_on.set()
    for reader in started(waiting):
        reader.join(120)
        assert b"[DONE]" in reader.data
    for transfer in transfers:
        transfer.close()


def test_a_damaged_checkpoint_fails_its_own_requests_alone(service, acme, claim):
    service.keep(claim, 7)
    place = service.store.registry.resolve(acme.scope, name_of(claim)).place
    damage(service.store, place, lambda data: data[:-1])
    refused = complete(acme, name_of(claim))
    assert (refused.status_code, error_of(refused)["code"]) == (500, "corrupt")
    assert complete(acme, "tiny").status_code == 200


def fail(service, acme, claim):
    service.store.jobs.fail(claim, "diverged", "the loss is no number")


def cancel(service, acme, claim):
    answer = acme.alice.post(f"/v1/fine_tuning/jobs/{claim.job_id}/cancel")
    assert answer.json()["status"] == "cancelled"


def delete_file(service, acme, claim):
    assert acme.delete(f"/v1/files/{claim.job.training_files[0]}").json()["deleted"]


def delete_prefix(service, acme, claim):
    assert acme.delete("/v1/models/alice:quiz").json()["deleted"]


def delete_user(service, acme, claim):
    assert acme.delete("/v1/users/alice").json()["deleted"]


def succeed_and_delete(service, acme, claim):
    service.complete(claim, random_prefix(service.base, 4))
    assert complete(acme, name_of(claim)).status_code == 200
    delete_prefix(service, acme, claim)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("end", [fail, cancel, delete_file, delete_prefix, delete_user, succeed_and_delete])
def test_answers_of_every_checkpoint_end_with_their_job(service, acme, claim, end):
    service.keep(claim, 7, seed=1)
    other = service.claim(acme.scope, "alice", "other") if end is not delete_user else None
    owner, beside = claim.owner.owner_id, []
    with lasting(service.parts.engine):
        readers = started([Reader(service, acme.key, name_of(claim), seed=0)])
        service.keep(claim, 9, seed=2)
        readers += started([Reader(service, acme.key, name_of(claim), seed=1)])
        if other is not None:
            service.keep(other, 7)
            beside = started([Reader(service, acme.key, name_of(other), tokens=60)])
        end(service, acme, claim)
        open_then = service.parts.tickets.count()
        for reader in readers:
            reader.join(120)
    for reader in readers:
        assert [error["code"] for error in reader.errors] == ["model_not_found"]
        assert b"[DONE]" not in reader.data
    assert end is fail or open_then <= len(beside)  # whose teller waits for nobody
    for reader in beside:
        reader.join(120)
        assert b"[DONE]" in reader.data
    assert complete(acme, name_of(claim)).status_code == 404
    residency = service.parts.residency
    assert residency.of_job(claim.job_id) == set()
    assert residency._at_hand == {}
    left = {place for place, _ in service.store.blobs.places() if place.owner_id == owner}
    assert len([place for place in left if place.object_id.startswith("ckpt-")]) == len(beside)
    if end is delete_user:
        assert left == set()


def test_the_tensors_of_a_cancelled_jobs_checkpoints_leave_the_pool(service, acme, claim):
    resident = service.parts.engine.stats().resident_prefixes
    for step in (7, 9):
        service.keep(claim, step, seed=step)
        assert complete(acme, name_of(claim), PROMPT).status_code == 200
    ids = service.parts.residency.of_job(claim.job_id)
    assert len(ids) == 2
    assert service.parts.engine.holds(ids) == ids
    assert service.parts.engine.stats().resident_prefixes == resident + 2
    cancel(service, acme, claim)
    assert service.parts.engine.holds(ids) == set()
    assert service.parts.engine.stats().resident_prefixes == resident


@pytest.mark.usefixtures("unhurried")
def test_two_processes_both_end_a_cancelled_jobs_answers(tmp_path, database_url):
    with (
        serving(tmp_path, database_url, store=STORE) as one,
        serving(tmp_path, database_url, store=STORE) as two,
    ):
        acme = one.tenant()
        acme.alice = one.user(acme, "alice")
        claim = one.claim(acme.scope, "alice", "quiz")
        one.keep(claim, 7)
        with lasting(two.parts.engine):
            readers = started([Reader(two, acme.key, name_of(claim), seed=i) for i in range(3)])
            one.keep(claim, 9, seed=1)
            readers += started([Reader(two, acme.key, name_of(claim), seed=9)])
            cancel(one, acme, claim)
            assert two.parts.tickets.count() == 0
            for reader in readers:
                reader.join(120)
                assert [error["code"] for error in reader.errors] == ["model_not_found"]
        with two.client(acme.key) as elsewhere:
            assert complete(elsewhere, name_of(claim)).status_code == 404


def test_a_service_that_starts_anew_serves_the_checkpoint_that_was_kept(tmp_path, database_url):
    with serving(tmp_path, database_url, store=STORE) as first:
        acme = first.tenant()
        first.user(acme, "alice")
        claim = first.claim(acme.scope, "alice", "quiz")
        first.keep(claim, 7, seed=1)
        said = text_of(complete(acme, name_of(claim)))
        first.store.jobs.release(claim)
        key = acme.key
    with serving(tmp_path, database_url, store=STORE) as second, second.client(key) as again:
        answer = complete(again, name_of(claim))
        assert text_of(answer) == said
        assert answer.json()["prefix_version"] == name_of(claim, 7)
        assert second.store.jobs.claim("another").attempt == 2
        assert text_of(complete(again, name_of(claim))) == said
