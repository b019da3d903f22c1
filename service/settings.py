"""What one service process may use and where it listens. Built once by its start and passed by hand."""

from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from prefix_engine import EngineConfig
from prefix_store.logs import Format, Level


class ServiceSettings(BaseSettings):
    """Settings of one service; what is not given is read from `PREFIX_<NAME>` in the environment.

    Attributes:
        host: address to listen on; only this machine unless told otherwise.
        port: of the API.
        metrics_port: of `/metrics`, on the same address; 0 switches it off.
        base_model: a carried base, a folder, or a name on the model hub.
        device: torch device; `cuda` when there is one, else `cpu`.
        threads: CPU threads of the engine; torch's choice if None.
        rows: rows of the batch.
        step_tokens: token budget of one step.
        kv_bytes: memory for running rows' keys and values.
        pool_bytes: memory for resident prefixes.
        queue_requests: rows that may wait for their turn, of all tenants.
        queue_tokens: positions, prompts and asked output, of requests that wait, run or whose answers have not left,
            of all tenants; no tenant holds more than is left of either for the others.
        tenant_requests: requests of one tenant under way at once, of any kind.
        held_bytes: bodies of requests under way and what they become when they are read, of all tenants, shared alike;
            two of the heaviest at least.
        sent_bytes: files that are being sent, of all tenants, shared alike; four of the largest upload at least. While one
            is read its sealed form lies beside it for a moment.
        connections: open at once; less if the process may not open so many files.
        kernels: `native` (compiled, CPU), `torch`, `graphs` (CUDA graphs), or `auto`: graphs on CUDA, native on
            a CPU where there is a C compiler, else torch.
        weights: `fp32`; not exact: `int8` on a CPU, `bf16` for CUDA.
        kv: `fp32`, or `bf16`: half the memory, not exact.
        prompt_cache_seconds: how long a prompt's keys and values wait for its caller's next request; 0 keeps none.
        deadline_seconds: a request that is not done after this fails; a request may ask for less.
        stall_seconds: a client that takes nothing of its answer for so long is cut off.
        drain_seconds: how long running requests may go on after SIGTERM.
        max_body_bytes: largest JSON body; as many rows as a request may have, full of token ids, take about 1 MiB.
        stuck_seconds: an engine with work that ends no step for so long is stuck, and its process ends with status 75.
        log_format: `json`, one object a line, or `text`.
        log_level: of our own events; `debug`, `info`, `warning` or `error`.
        otel_endpoint: base URL of an OpenTelemetry collector (OTLP over HTTP); no traces if None and
            OTEL_EXPORTER_OTLP_ENDPOINT is not set either.
        docs: whether `/docs` and `/openapi.json` are served.
    """

    model_config = SettingsConfigDict(
        env_prefix="PREFIX_", frozen=True, extra="ignore", env_ignore_empty=True
    )

    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    metrics_port: int = Field(default=9400, ge=0, le=65535)
    base_model: str = "gpt2-mini"
    device: str | None = None
    threads: int | None = Field(default=None, ge=1)
    rows: int = Field(default=32, ge=1, le=1024)
    step_tokens: int = Field(default=512, ge=1)
    kv_bytes: int = Field(default=1 << 30, ge=1 << 20)
    pool_bytes: int = Field(default=256 << 20, ge=1 << 20)
    queue_requests: int = Field(default=4096, ge=2)
    queue_tokens: int = Field(default=1 << 20, ge=1024)
    tenant_requests: int = Field(default=1024, ge=1)
    held_bytes: int = Field(default=128 << 20, ge=4 << 20)
    sent_bytes: int = Field(default=256 << 20, ge=2)
    connections: int = Field(default=4096, ge=16)
    kernels: Literal["auto", "graphs", "native", "torch"] = "auto"
    weights: Literal["fp32", "bf16", "int8"] = "fp32"
    kv: Literal["fp32", "bf16"] = "fp32"
    prompt_cache_seconds: float = Field(default=300.0, ge=0, allow_inf_nan=False)
    deadline_seconds: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    stall_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    drain_seconds: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    stuck_seconds: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    log_format: Format = "json"
    log_level: Level = "info"
    otel_endpoint: str | None = Field(default=None, pattern="^https?://")
    docs: bool = True

    def engine_config(self) -> EngineConfig:
        """The engine's share of these settings."""
        return EngineConfig(
            rows=self.rows,
            step_tokens=max(self.step_tokens, self.rows),
            kv_bytes=self.kv_bytes,
            pool_bytes=self.pool_bytes,
            max_waiting=self.queue_requests,
            max_waiting_tokens=self.queue_tokens,
            kernels=self.kernels,
            weights=self.weights,
            kv=self.kv,
            prompt_cache_s=self.prompt_cache_seconds,
        )
