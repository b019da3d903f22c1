"""What a worker may be told by its environment. Built once by the process and passed by hand."""

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefix_store.logs import Format, Level


class WorkerSettings(BaseSettings):
    """Settings of one worker; what is not given is read from `PREFIX_<NAME>` in the environment.

    Attributes:
        base_model: the base that prefixes are trained for: a carried one, a folder, or a name of the hub.
        device: torch device; `cuda` when there is one, else `cpu`.
        worker_threads: threads of a training process; torch's own choice if None. A run that was cut ends
            bit for bit the same only with as many.
        worker_joint_jobs: how many jobs are trained in one process at most, of tenants that let theirs; 1 trains
            every job in a process of its own.
        worker_share_beside_texts: share of the time that training takes while a service on this machine generates;
            1 lets nobody by. It is also behind every other process of the machine for the processor's time.
        worker_poll_seconds: how often an idle worker looks for a job.
        worker_checkpoint_seconds: how often a run's state is kept.
        worker_job_seconds: how long a job keeps its place while another tenant's waits; then it saves its state and goes
            to the end of the line.
        worker_stop_seconds: how long a run may take to save its state, or wait for a storage that is away, when the
            worker is told to stop; 10 s later it leaves whatever hangs.
        worker_silence_seconds: a training process that tells nothing for so long is stuck and killed.
        log_format: `json`, one object a line, or `text`.
        log_level: of our own events; `debug`, `info`, `warning` or `error`.
        otel_endpoint: base URL of an OpenTelemetry collector (OTLP over HTTP); no traces if None and
            OTEL_EXPORTER_OTLP_ENDPOINT is not set either.
    """

    model_config = SettingsConfigDict(
        env_prefix="PREFIX_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    base_model: str = "gpt2-mini"
    device: str | None = None
    worker_threads: int | None = Field(default=None, ge=1)
    worker_joint_jobs: int = Field(default=8, ge=1)
    worker_share_beside_texts: float = Field(default=0.25, gt=0, le=1)
    worker_poll_seconds: float = Field(default=1.0, gt=0)
    worker_checkpoint_seconds: float = Field(default=20.0, gt=0)
    worker_job_seconds: float = Field(default=3600.0, gt=0)
    worker_stop_seconds: float = Field(default=15.0, gt=0)
    worker_silence_seconds: float = Field(default=900.0, gt=0)
    log_format: Format = "json"
    log_level: Level = "info"
    otel_endpoint: str | None = Field(default=None, pattern="^https?://")
