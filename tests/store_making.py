"""What store tests make again and again: uploads, jobs, published versions."""

import json

from database_making import everything
from sqlalchemy import update

from prefix_store.db import db_now
from prefix_store.publish import TrainedPrefix
from prefix_store.tables import jobs

BASE = "f" * 64


def rows(*pairs):
    return b"".join(json.dumps({"prompt": p, "completion": c}).encode() + b"\n" for p, c in pairs)


def upload(store, scope, owner, data=None, **options):
    with store.datasets.writer(scope, owner, "train.jsonl", **options) as writer:
        writer.write(rows(("a", "b")) if data is None else data)
        return writer.finish()


def queue(store, scope, owner, prefix, files=None, **options):
    files = files or [upload(store, scope, owner).id]
    return store.jobs.create(scope, owner, prefix, files, base_fingerprint=BASE, **options)


def trained(payload=b"tensor bytes", files=()):
    return TrainedPrefix(payload, 10, 10, {"separator": "\n", "end_id": 0}, {"held_out_loss": 1.0}, 99, files)


def best(payload=b"the best so far", step=1, loss=3.0):
    metrics = {"step": step, "valid_loss": loss}
    return TrainedPrefix(payload, 10, 0, {"separator": "\n", "end_id": 0}, metrics)


def complete(store, claim, payload=b"tensor bytes", *, promote=True):
    live = store.jobs.live(claim)
    compared = None if live is None else live.version_id
    return store.jobs.complete(
        claim, trained(payload), promote=promote, compared_with=compared, reason="measured"
    )


def publish(store, scope, owner, prefix, payload=b"tensor bytes", *, promote=True, files=None, **options):
    job = queue(store, scope, owner, prefix, files, **options)
    claim = store.jobs.claim("w")
    assert claim is not None
    assert claim.job_id == job.id
    return complete(store, claim, payload, promote=promote)


def lapse(store, job_id):
    """Its lease is over a moment ago, as when its worker is dead and never says so."""
    with everything(store) as connection:
        connection.execute(update(jobs).where(jobs.c.id == job_id).values(lease_until=db_now() - 0.1))


def user_scope(store, tenant, name):
    return store.keys.verify(store.keys.issue(tenant, name).api_key)


def files_on_disk(store):
    return {place for place, _ in store.blobs.places()}
