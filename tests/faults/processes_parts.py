"""What is done to a process in which a failpoint is armed, by the point's part; each function returns what is wrong."""

import contextlib
import signal
import threading
import time
from pathlib import Path

import httpx2

WAIT_S = 120.0
WISHES = {"max_steps": 12, "batch_size": 4, "eval_steps": 6, "prefix_length": 2}


def until(found, seconds=WAIT_S):
    """What `found` brings as soon as it is true; else its last answer."""
    give_up = time.monotonic() + seconds
    while not (answer := found()) and time.monotonic() < give_up:
        time.sleep(0.05)
    return answer


def ask(client, method, path, **options):
    """Status and body; status 0: no whole answer came."""
    try:
        answer = client.request(method, path, **options)
    except httpx2.TransportError:
        return 0, ""
    return answer.status_code, answer.text


def sure(site, client, *asked, **options):
    """The armed process first; then, unless it said 200, the other, as a client does."""
    status, text = ask(client, *asked, **options)
    first = status
    if status in {0, 503}:
        status, text = ask(site.alice, *asked, **options)
    return first, status, text


def try_worker(site, _point, act, process, _client):
    """A job is trained, however its worker fares, and published once."""
    name = site.name()
    job_id = site.train(site.alice, site.file, name, model=site.base.name, hyperparameters=WISHES)
    children = set()
    give_up = time.monotonic() + WAIT_S
    while time.monotonic() < give_up and process.poll() is None:
        with contextlib.suppress(OSError):
            found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            children |= {int(child) for child in found}
        if site.alice.get(f"/v1/fine_tuning/jobs/{job_id}").json()["status"] == "succeeded":
            break
        time.sleep(0.02)
    if act == "kill":
        other = site.work()
        job = until(lambda: _ended(site, job_id))
        other.send_signal(signal.SIGTERM)
        other.wait(60)
    else:
        job = until(lambda: _ended(site, job_id))
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    wrong = [] if job and job["status"] == "succeeded" else [f"the job: {job}"]
    versions = site.alice.get(f"/v1/prefixes/alice:{name}").json().get("versions", [])
    if len(versions) != 1:
        wrong.append(f"{len(versions)} versions")
    left = until(lambda: not [child for child in children if _runs(child)], 20)
    return wrong if left else [*wrong, "a training process outlives its worker"]


def _ended(site, job_id):
    job = site.alice.get(f"/v1/fine_tuning/jobs/{job_id}").json()
    return job if job["status"] in {"succeeded", "failed", "cancelled"} else None


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def try_job(site, _point, act, _process, client):
    """The job is made once, though the client asked twice."""
    name = site.name()
    body = {"model": site.base.name, "training_file": site.file, "suffix": name, "seed": 1}
    headers = {"Idempotency-Key": name}
    first, status, text = sure(site, client, "POST", "/v1/fine_tuning/jobs", json=body, headers=headers)
    wrong = _first(act, first) + ([] if status == 200 else [f"then {status}: {text}"])
    made = [
        job
        for job in site.alice.get("/v1/fine_tuning/jobs?limit=100").json()["data"]
        if name in job["prefix"]
    ]
    if len(made) != 1:
        wrong.append(f"{len(made)} jobs")
    for job in made:
        site.alice.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    return wrong


def try_deletion(site, _point, act, _process, client):
    """A file that was deleted is gone, though its deleter was not told."""
    file = site.upload(site.alice, [{"prompt": site.name(), "completion": "b"}])
    first, status, text = sure(site, client, "DELETE", f"/v1/files/{file}")
    wanted = {200, 202} if act == "sleep" else {404}
    wrong = _first(act, first) + ([] if status in wanted else [f"then {status}: {text}"])
    for path in (f"/v1/files/{file}", f"/v1/files/{file}/content"):
        status, _ = ask(site.alice, "GET", path)
        wrong += [] if status == 404 else [f"{path} is {status}"]
    return wrong


def try_first_token(site, _point, act, _process, client):
    """An answer that failed before its first token costs nothing and can be had again."""
    body = {"model": site.base.name, "prompt": "hello", "max_tokens": 4, "temperature": 0}
    used = _requests(site)
    first, status, text = sure(site, client, "POST", "/v1/completions", json=body)
    wrong = _first(act, first) + ([] if status == 200 else [f"then {status}: {text}"])
    if not until(lambda: _requests(site) == used + 1, 10):
        wrong.append(f"{_requests(site) - used} requests counted")
    time.sleep(0.7)
    return wrong if _requests(site) == used + 1 else [*wrong, "counted more than once"]


def try_usage(site, _point, act, process, client):
    """What was gathered is charged once, or lost with a process that is killed at that moment; never twice."""
    body = {"model": site.base.name, "prompt": "hello", "max_tokens": 4, "temperature": 0}
    used = _requests(site)
    status, text = ask(client, "POST", "/v1/completions", json=body)
    wrong = [] if status == 200 or (act == "kill" and status == 0) else [f"{status}: {text}"]
    until(lambda: process.poll() is not None or _requests(site) > used, 20)
    time.sleep(1.5)
    counted = _requests(site) - used
    return wrong if counted == (0 if act == "kill" else 1) else [*wrong, f"{counted} requests counted"]


def _requests(site):
    return sum(day["requests"] for day in site.acme.get("/v1/usage").json()["data"])


def try_revocation(site, _point, act, process, client):
    """A prefix is deleted while the armed process answers from it: its answer ends, and the deletion is acknowledged."""
    model = site.publish(site.name())
    lines = []
    body = {"model": model, "prompt": "x", "max_tokens": 200, "min_tokens": 200, "stream": True}
    reader = threading.Thread(target=_read, args=(client, body, lines))
    reader.start()
    until(lambda: len(lines) > 3, 30)
    began = time.monotonic()
    status, text = ask(site.alice, "DELETE", f"/v1/models/{model}")
    reader.join(30)
    took, count = time.monotonic() - began, len(lines)
    wrong = [] if status in {200, 202} else [f"{status}: {text}"]
    if reader.is_alive() or took > 15:
        wrong.append(f"the answer went on for {took:.1f} s")
    status, _ = ask(site.alice, "POST", "/v1/completions", json={"model": model, "prompt": "x"})
    wrong += [] if status == 404 else [f"the other still answers: {status}"]
    status, _ = ask(client, "POST", "/v1/completions", json={"model": model, "prompt": "x"})
    wrong += [] if status in {0, 404, 503} else [f"the armed one still answers: {status}"]
    if act == "raise":
        status, _ = ask(client, "GET", "/readyz")
        wrong += [] if status in {0, 503} else [f"a process that cannot revoke is ready: {status}"]
        until(lambda: process.poll() is not None, 20)
        wrong += [] if process.returncode == 75 else [f"it ended with {process.returncode}"]
    return wrong if count == len(lines) else [*wrong, "something was sent afterwards"]


def _read(client, body, lines):
    with (
        contextlib.suppress(httpx2.TransportError),
        client.stream("POST", "/v1/completions", json=body) as answer,
    ):
        for line in answer.iter_lines():
            lines.append(line)


def _first(act, status):
    """What the armed process said: nothing when killed, 503 when it failed, the truth when it was slow."""
    wanted = {"kill": {0}, "raise": {503}, "sleep": {200, 202}}[act]
    return [] if status in wanted else [f"at first {status}"]


TRIES = {
    "service.job_made": try_job,
    "service.deleted": try_deletion,
    "service.before_first_token": try_first_token,
    "service.revoking": try_revocation,
    "service.usage_taken": try_usage,
}
