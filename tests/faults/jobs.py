"""Jobs survive faults: none is lost, none is published twice, none stands still after its lease."""

import collections
import threading
import time

from trainer_making import dataset

from faults.clients import Client, make_tenant, make_user
from faults.history import History
from faults.nemesis import Nemesis
from faults.site import Site

TENANTS, USERS = 4, 5
ENDED = {"succeeded", "failed", "cancelled"}
# A training that ends at once; what is tried here is everything around it.
WISHES = {"n_epochs": 1, "batch_size": 4, "max_steps": 2, "prefix_length": 2, "eval_steps": 2}
PATIENCE_S = 900.0


def measure(home, say, *, jobs=2000, kills=200, restarts=20, pauses=20, seed=1):
    """Submit jobs through both services and hurt the site meanwhile; what was found, by name."""
    # Crashes in numbers must not end in giving up, which poison jobs are for.
    with Site(home, wrong_clocks=True, max_attempts=50) as site:
        history = History(home / "jobs.jsonl")
        users = _users(site, history)
        submitted, workers = {}, []
        for n, user in enumerate(users):
            count = jobs // len(users) + (n < jobs % len(users))
            workers.append(threading.Thread(target=_submit, args=(user, n, count, submitted)))
        began = time.monotonic()
        for thread in workers:
            thread.start()
        nemesis = Nemesis(site, history, seed)
        _hurt(site, nemesis, jobs, {"kill": kills, "restart_postgres": restarts, "pause": pauses}, say)
        for thread in workers:
            thread.join()
        last = _wait_for_all(site, jobs)
        seconds = time.monotonic() - began
        found = _check(site, users, submitted, history)
        history.close()
    return found | {
        "clocks that are an hour off": site.clocks_off,
        "stuck": last,
        "seconds": round(seconds),
        "faults": nemesis.counts,
    }


def _users(site, history):
    made = []
    for t in range(TENANTS):
        tenant = make_tenant(site, history, f"tenant {t}", joint=t % 2 == 0)
        made += [make_user(site, history, tenant, f"user{u}") for u in range(USERS)]
    return made


def _submit(user: Client, number, count, submitted):
    """Uploads one dataset, then asks for jobs; every request has a key of its own, and is sent until it is answered."""
    file = user.sure(
        "upload",
        "POST",
        "/v1/files",
        data={"purpose": "fine-tune"},
        files={"file": ("t.jsonl", dataset(12, number, longest=4))},
        headers={"Idempotency-Key": f"file-{number}"},
    ).json()["id"]
    for n in range(count):
        asked = {
            "model": "base",
            "training_file": file,
            "suffix": f"voice{n}",
            "seed": n,
            "method": {"type": "supervised", "supervised": {"hyperparameters": WISHES}},
        }
        key = f"job-{number}-{n}"
        answer = user.sure(
            "job", "POST", "/v1/fine_tuning/jobs", json=asked, headers={"Idempotency-Key": key}
        )
        submitted[key] = (user, answer.json()["id"])


def _hurt(site, nemesis, jobs, wanted, say):
    """Spread the acts over the jobs' way: each is due when its share of all jobs has ended."""
    due = sorted(((n + 0.5) / count, kind) for kind, count in wanted.items() for n in range(count))
    give_up = time.monotonic() + PATIENCE_S + 10.0 * jobs
    for share, kind in due:
        while (ended := _ended(site)) < share * jobs:
            assert time.monotonic() < give_up, f"{ended} of {jobs} jobs have ended"
            time.sleep(0.1)
        nemesis.act(kind)
        if nemesis.counts["kill"] % 20 == 0 and kind == "kill":
            say(f"{ended} of {jobs} jobs have ended, {nemesis.counts}")


def _ended(site):
    ((count,),) = site.rows("SELECT count(*) FROM jobs WHERE status = ANY(%s)", list(ENDED))
    return count


def _wait_for_all(site, jobs):
    """Jobs that stand still: running, and nobody has taken them up long after their lease."""
    give_up = time.monotonic() + PATIENCE_S
    while _ended(site) < jobs and time.monotonic() < give_up:
        time.sleep(0.2)
    return jobs - _ended(site)


def _check(site, users, submitted, history):
    """History, database and files against each other."""
    rows = site.rows("SELECT id, status FROM jobs")
    status = dict(rows)
    ids = [job_id for _, job_id in submitted.values()]
    published = collections.Counter(job for (job,) in site.rows("SELECT job_id FROM versions"))
    called = sum(
        _is_called(user, job_id) for user, job_id in submitted.values() if status.get(job_id) == "succeeded"
    )
    succeeded = sum(status.get(job_id) == "succeeded" for job_id in ids)
    look = site.store().fsck.look(deep=True)
    return {
        "jobs": len(ids),
        "lost": sum(job_id not in status for job_id in ids),
        "made twice": len(rows) - len(set(ids)) + len(ids) - len(set(ids)),
        "succeeded": succeeded,
        "failed": sum(status.get(job_id) == "failed" for job_id in ids),
        "published twice": sum(count - 1 for count in published.values()),
        "succeeded and not published": sum(
            status[i] == "succeeded" and i not in published for i in ids if i in status
        ),
        "published and not succeeded": sum(status.get(job) != "succeeded" for job in published),
        "published and not answered": succeeded - called,
        "files missing": len(look.missing),
        "files damaged": len(look.damaged),
        "tries without an answer": sum(line["result"] == "lost" for line in history.lines()),
        "refusals": sum(line["result"] in {429, 503} for line in history.lines()),
    }


def _is_called(user, job_id):
    model = user.sure("job", "GET", f"/v1/fine_tuning/jobs/{job_id}").json()["fine_tuned_model"]
    asked = {"model": model, "prompt": "a", "max_tokens": 2, "temperature": 0}
    return user.sure("complete", "POST", "/v1/completions", json=asked).json()["model"] == model
