"""Jobs, their events and checkpoints as OpenAI shows them."""

from typing import Any

from prefix_store.checkpoints import Checkpoint
from prefix_store.job_rows import Job, JobEvent
from service.shapes import CheckpointShown, EventShown, JobShown

EXAMPLE = {
    "id": "ftjob-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "object": "fine_tuning.job",
    "created_at": 1767225600,
    "finished_at": 1767225690,
    "model": "gpt2-mini",
    "fine_tuned_model": "alice:brand-voice@1",
    "organization_id": "ten-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "status": "succeeded",
    "hyperparameters": {"max_steps": 200},
    "training_file": "file-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "validation_file": None,
    "result_files": ["file-5uTnqvJ0Zq1rVbY7eXo2Ks"],
    "trained_tokens": 40960,
    "seed": 0,
    "error": None,
    "estimated_finish": None,
    "method": {"type": "supervised", "supervised": {"hyperparameters": {"max_steps": 200}}},
    "metadata": None,
    "integrations": [],
    "user_provided_suffix": "brand-voice",
    "evaluation": None,
    "prefix": "alice:brand-voice",
    "promoted": True,
    "progress": None,
    "result": {"held_out_loss": 2.31, "base_loss": 4.23, "promoted": True},
}
EVENT = {
    "id": "ftevent-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "object": "fine_tuning.job.event",
    "created_at": 1767225601,
    "level": "info",
    "type": "message",
    "message": "Fine-tuning job started",
    "data": None,
}
CHECKPOINT = {
    "id": "ckpt-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "object": "fine_tuning.job.checkpoint",
    "created_at": 1767225640,
    "fine_tuning_job_id": "ftjob-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "fine_tuned_model_checkpoint": "alice:brand-voice@ftjob-4uTnqvJ0Zq1rVbY7eXo2Ks",
    "step_number": 60,
    "metrics": {"step": 60, "valid_loss": 2.4},
}
_AUTO = ("n_epochs", "batch_size", "learning_rate_multiplier")


def job_json(job: Job) -> JobShown:
    """A job as OpenAI's, with `prefix`, `evaluation`, `promoted`, `progress` and `result` of our own."""
    wishes: dict[str, Any] = dict.fromkeys(_AUTO, "auto")
    wishes |= (job.resolved or {}) | job.hyperparameters.to_json()
    training = job.training_files[0] if len(job.training_files) == 1 else list(job.training_files)
    error = job.error
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created_at),
        "finished_at": _seconds(job.finished_at),
        "model": job.model,
        "fine_tuned_model": job.fine_tuned_model,
        "organization_id": job.owner.tenant_id,
        "status": job.status,
        "hyperparameters": wishes,
        "training_file": training,
        "validation_file": job.validation_file,
        "result_files": list(job.result_files),
        "trained_tokens": job.trained_tokens,
        "seed": job.seed,
        "error": None
        if error is None
        else {"code": error.code, "message": error.message, "param": error.param},
        "estimated_finish": None,
        "method": {"type": "supervised", "supervised": {"hyperparameters": wishes}},
        "metadata": job.metadata,
        "integrations": [],
        "evaluation": None if job.evaluation is None else job.evaluation.to_json(),
        "user_provided_suffix": job.suffix,
        "prefix": job.prefix,
        "promoted": job.promoted,
        "progress": job.progress,
        "result": None if job.result is None else {**job.result, "promoted": job.promoted},
    }


def event_json(event: JobEvent) -> EventShown:
    """An event as OpenAI's."""
    return {
        "id": event.id,
        "object": "fine_tuning.job.event",
        "created_at": int(event.created_at),
        "level": event.level,
        "type": event.type,
        "message": event.message,
        "data": event.data,
    }


def checkpoint_json(kept: Checkpoint) -> CheckpointShown:
    """A checkpoint as OpenAI's."""
    return {
        "id": kept.id,
        "object": "fine_tuning.job.checkpoint",
        "created_at": int(kept.created_at),
        "fine_tuning_job_id": kept.job_id,
        "fine_tuned_model_checkpoint": kept.name,
        "step_number": kept.step,
        "metrics": kept.metrics,
    }


def _seconds(moment: float | None) -> int | None:
    return None if moment is None else int(moment)
