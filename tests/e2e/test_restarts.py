"""Processes that are killed or asked to stop: nothing is lost, nothing is done twice, nobody is cut short."""

import signal
import threading
import time

import httpx2
import pytest
from real_processes import Machine, carried, ended, kill
from service_making import events

pytestmark = pytest.mark.timeout(600)
CANARY = "zyxcanary"


def stream(client, model, got, tokens=400):
    """Read one stream to its end into `got`: lines, and how it ended."""
    body = {"model": model, "prompt": "x", "max_tokens": tokens, "min_tokens": tokens, "stream": True}
    lines = []
    got.append(lines)
    try:
        with client.stream("POST", "/v1/completions", json=body) as response:
            lines.append(response.status_code)
            for line in response.iter_lines():
                lines.append(line)  # noqa: PERF402 - seen by others while it grows
    except httpx2.TransportError as error:
        lines.append(error)


def streams(machine, key, count, **options):
    got = []
    threads = [
        threading.Thread(target=stream, args=(machine.client(key), "gpt2-mini", got), kwargs=options)
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    give_up = time.monotonic() + 120
    while sum(len(lines) > 3 for lines in got) < count:
        assert time.monotonic() < give_up
        assert all(lines[:1] in ([], [200]) for lines in got), got
        time.sleep(0.02)
    return got, threads


def test_a_service_killed_under_streams_starts_again_clean(tmp_path):
    with Machine(tmp_path) as machine:
        service = machine.serve()
        acme = machine.tenant()
        alice = machine.user(acme, "alice")
        file = machine.upload(alice, carried("quiz_master_train", 30))
        before = acme.post("/v1/completions", json={"model": "gpt2-mini", "prompt": "The", "temperature": 0})
        got, threads = streams(machine, acme.key, 8)
        kill(service)
        for thread in threads:
            thread.join(120)
        assert all(isinstance(lines[-1], Exception) for lines in got)
        service = machine.serve()
        again = acme.post("/v1/completions", json={"model": "gpt2-mini", "prompt": "The", "temperature": 0})
        assert again.json()["choices"] == before.json()["choices"]
        assert alice.get(f"/v1/files/{file}").status_code == 200
        # What the killed process was counts as dead soon: a delete need not wait for it.
        began = time.monotonic()
        assert acme.delete("/v1/users/alice").json()["deleted"]
        assert time.monotonic() - began < 20
        service.send_signal(signal.SIGTERM)
        assert ended(service) == 0


def test_sigterm_finishes_what_runs_and_refuses_what_is_new(tmp_path):
    with Machine(tmp_path) as machine:
        service = machine.serve()
        acme = machine.tenant()
        got, threads = streams(machine, acme.key, 6)
        service.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        late = []
        stream(machine.client(acme.key), "gpt2-mini", late, tokens=1)
        refused = late[0][0]
        assert isinstance(refused, Exception) or refused == 503
        for thread in threads:
            thread.join(120)
        for lines in got:
            assert lines[0] == 200
            assert "data: [DONE]" in lines
            assert not [event for event in events(lines[1:]) if "error" in event]
        assert ended(service) == 0


def test_streams_longer_than_the_drain_end_with_an_error_and_not_as_if_whole(tmp_path):
    with Machine(tmp_path, drain_seconds=0.2) as machine:
        service = machine.serve()
        acme = machine.tenant()
        got, threads = streams(machine, acme.key, 24, tokens=1000)
        service.send_signal(signal.SIGTERM)
        for thread in threads:
            thread.join(120)
        assert ended(service) == 0
        broken = [lines for lines in got if "data: [DONE]" not in lines]
        assert broken
        for lines in broken:
            (error,) = [event["error"] for event in events(lines[1:]) if "error" in event]
            assert error["code"] == "draining"


def test_a_worker_killed_in_mid_training_is_followed_by_one_that_publishes_once(tmp_path):
    with Machine(tmp_path, lease_seconds=3, worker_checkpoint_seconds=0.2) as machine:
        machine.serve()
        acme = machine.tenant()
        alice = machine.user(acme, "alice")
        file = machine.upload(alice, carried("quiz_master_train", 200))
        job = machine.train(alice, file, "quiz", hyperparameters={"max_steps": 60, "prefix_length": 6})
        worker = machine.work()
        machine.wait(alice, job, lambda j: ((j["progress"] or {}).get("update") or 0) >= 8)
        kept = f"/v1/fine_tuning/jobs/{job}/checkpoints"
        machine.wait(alice, job, lambda _: alice.get(kept).json()["data"])
        kill(worker)
        name = f"alice:quiz@{job}"
        asked = {"model": name, "prompt": "category : music", "max_tokens": 4}
        between = alice.post("/v1/completions", json=asked).json()
        assert between["prefix_version"].startswith(f"{name}-step-")
        machine.work()
        done = machine.wait(alice, job)
        assert alice.post("/v1/completions", json=asked).json()["prefix_version"] == "alice:quiz@1"
        assert done["status"] == "succeeded"
        assert done["fine_tuned_model"] == "alice:quiz@1"
        versions = alice.get("/v1/prefixes/alice:quiz").json()["versions"]
        assert [version["version"] for version in versions] == [1]
        told = [
            e["message"] for e in alice.get(f"/v1/fine_tuning/jobs/{job}/events?limit=100").json()["data"]
        ]
        assert any("attempt 2" in message for message in told)


def test_deleting_a_user_in_mid_training_publishes_nothing_and_leaves_nothing(tmp_path):
    with Machine(tmp_path, lease_seconds=3) as machine:
        machine.serve()
        worker = machine.work()
        acme = machine.tenant()
        rows = [{"prompt": f"{CANARY} {i}", "completion": f"{CANARY} answer {i}"} for i in range(200)]
        gone = machine.user(acme, CANARY)
        stays = machine.user(acme, "bob")
        job = machine.train(gone, machine.upload(gone, rows), "voice", hyperparameters={"max_steps": 5000})
        machine.wait(gone, job, lambda j: ((j["progress"] or {}).get("update") or 0) >= 2)
        answer = acme.post("/v1/completions", json={"model": "gpt2-mini", "prompt": CANARY, "max_tokens": 4})
        assert answer.status_code == 200
        deleted = acme.delete(f"/v1/users/{CANARY}").json()
        assert deleted["deleted"]
        assert gone.get(f"/v1/fine_tuning/jobs/{job}").status_code == 401
        # The worker goes on with the next job: nobody else is held up.
        file = machine.upload(stays, carried("quiz_master_train", 40))
        after = machine.train(stays, file, "quiz", hyperparameters={"max_steps": 4, "prefix_length": 4})
        assert machine.wait(stays, after)["status"] == "succeeded"
        assert acme.get(f"/v1/models/{CANARY}:voice").status_code == 404
        give_up = time.monotonic() + 120
        while found := _holding(machine, CANARY.encode()):
            assert time.monotonic() < give_up, found
            time.sleep(0.5)
        for secret in (gone.key, acme.key, CANARY):
            assert secret not in machine.said("service")
            assert secret not in machine.said("trainer_worker")
        worker.send_signal(signal.SIGTERM)
        assert ended(worker) == 0


def _holding(machine, needle):
    """Files of the data folder in which some bytes stand: tables, their logs, blobs, drafts."""
    return [
        path
        for path in (machine.folder / "store").rglob("*")
        if path.is_file() and needle in path.read_bytes()
    ]
