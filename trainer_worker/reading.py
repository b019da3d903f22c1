"""From the store what a training process needs to know of a claimed job: its rows and the versions that it names."""

from prefix_engine.template import Template
from prefix_store import Store
from prefix_store.errors import Corrupt, LeaseLost, NotFound
from prefix_store.job_rows import Claim
from prefix_store.version_rows import Resolved
from trainer_worker.order import Order, Version
from trainer_worker.refusal import Refused
from trainer_worker.settings import WorkerSettings


def read_order(store: Store, settings: WorkerSettings, claim: Claim) -> tuple[Order, Resolved | None]:
    """Everything that the process needs, in memory, and the live version that the job's is compared with, if any.

    Raises:
        Refused: something that the job names is gone or damaged.
        LeaseLost: the job itself is.
    """
    job = claim.job
    try:
        training = [(file, store.datasets.read(claim, file)) for file in job.training_files]
        validation = job.validation_file
        held_out = None if validation is None else (validation, store.datasets.read(claim, validation))
    except NotFound:  # deleting a file or its owner cancels the job
        raise LeaseLost("a file of the job is gone") from None
    except Corrupt:
        told = "a file of the job is damaged; upload it again"
        raise Refused("file_corrupt", told, "training_file") from None
    start = _start(store, claim)
    live, bytes_of_live = _live(store, claim)
    if validation is None:
        _warn_of_seen_rows(store, claim, start, bytes_of_live)
    order = Order(
        wishes=job.hyperparameters,
        seed=job.seed,
        training=training,
        validation=held_out,
        start=start,
        live=bytes_of_live,
        checkpoint=store.jobs.load_checkpoint(claim),
        checkpoint_seconds=settings.worker_checkpoint_seconds,
        evaluation=job.evaluation,
    )
    return order, live


def _start(store: Store, claim: Claim) -> Version | None:
    try:
        found = store.jobs.start(claim)
        return None if found is None else _version(store, found)
    except NotFound:
        raise Refused("start_deleted", "the version to start from was deleted", "model") from None
    except (Corrupt, ValueError):
        told = "the version to start from is damaged; start from another"
        raise Refused("corrupt", told, "model") from None


def _live(store: Store, claim: Claim) -> tuple[Resolved | None, Version | None]:
    found = store.jobs.live(claim)
    if found is None:
        return None, None
    try:
        return found, _version(store, found)
    except NotFound:  # deleted this moment; if another went live, publishing notices
        return None, None
    except (Corrupt, ValueError):
        told = "The live version is damaged and cannot be compared with"
        store.jobs.event(claim, "warn", "message", told)
        return found, None


def _warn_of_seen_rows(store: Store, claim: Claim, start: Version | None, live: Version | None) -> None:
    """Tell of versions that may have been trained on the held-out rows."""
    known = (("the version to start from", start), ("the live version", live))
    named = {version.version_id: name for name, version in reversed(known) if version is not None}
    who = [name for version, name in named.items() if not store.jobs.holds_out_alike(claim, version)]
    if who:
        told = " and ".join(who)
        told = f"{told[0].upper()}{told[1:]} may have been trained on rows that this job holds out: "
        mend = (
            "losses there are too low then; give a validation_file with rows that no version was trained on"
        )
        store.jobs.event(claim, "warn", "message", told + mend)


def _version(store: Store, found: Resolved) -> Version:
    """Its bytes; ValueError if the template beside them is none."""
    payload = store.registry.read(found)
    return Version(found.version_id, payload, Template.from_json(found.template))
