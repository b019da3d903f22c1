"""Bodies of requests, as OpenAI names their fields. Unknown fields are refused, never ignored."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from service.errors import ApiError
from service.fields import (
    MOST_BIASES,
    MOST_ENTRIES,
    MOST_ROWS,
    Hyper,
    Label,
    Name,
    Prompt,
    Seed,
    Stop,
    Text,
    few,
)


class Body(BaseModel):
    """What all bodies have in common."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, strict=True)

    _at: ClassVar[str] = ""  # where it stands in its request's body

    @model_validator(mode="before")
    @classmethod
    def _known(cls, given: Any) -> Any:
        """Refuse the first unknown field, however many there are."""
        if isinstance(given, Mapping):
            for name in given:
                if name not in cls.model_fields:
                    shown = f"{cls._at}{str(name)[:100]}"
                    raise ApiError(400, "unknown_parameter", f"unknown parameter {shown!r}; remove it", shown)
        return given


class StreamOptions(Body):
    """What else a stream carries."""

    _at = "stream_options."

    include_usage: bool = False
    include_obfuscation: bool = False


class CompletionBody(Body):
    """`POST /v1/completions`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "alice:brand-voice",
                    "prompt": "name : The Eagle | food : French",
                    "max_tokens": 40,
                },
                {"model": "gpt2-mini", "prompt": [464, 3290], "max_tokens": 0, "echo": True, "logprobs": 1},
            ]
        }
    )

    model: Name
    prompt: Prompt = None
    max_tokens: Annotated[int, Field(ge=0)] | None = 16
    temperature: Annotated[float, Field(ge=0, le=2)] | None = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = 1.0
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = 1
    best_of: Annotated[int, Field(ge=1, le=20)] | None = None
    stop: Annotated[Stop | list[Stop] | None, few(4)] = None
    seed: Seed | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = False
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = 0.0
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]] | None, few(MOST_BIASES)] = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    suffix: None = None
    user: Text | None = None

    @model_validator(mode="after")
    def _fit_together(self) -> "CompletionBody":
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options needs stream: true")
        if self.best_of is not None and self.best_of < (self.n or 1):
            raise ValueError("best_of must be at least n")
        if self.best_of is not None and self.best_of > (self.n or 1) and self.stream:
            raise ValueError("best_of cannot be streamed; ask for n instead")
        return self


class Supervised(Body):
    """The only method."""

    _at = "method.supervised."

    hyperparameters: Hyper | None = None


class Method(Body):
    """How a job trains."""

    _at = "method."

    type: Literal["supervised"] = "supervised"
    supervised: Supervised | None = None


class JobBody(Body):
    """`POST /v1/fine_tuning/jobs`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "gpt2-mini",
                    "training_file": "file-4uTnqvJ0Zq1rVbY7eXo2Ks",
                    "suffix": "brand-voice",
                    "hyperparameters": {"prefix_length": 10, "max_steps": 200},
                }
            ]
        }
    )

    model: Name
    training_file: Annotated[Name | Annotated[list[Name], Field(min_length=1)], few(MOST_ENTRIES)]
    validation_file: Name | None = None
    suffix: Label | None = None
    prefix: Text | None = None
    hyperparameters: Hyper | None = None
    method: Method | None = None
    evaluation: Hyper | None = None
    seed: Annotated[int, Field(ge=0, le=(1 << 31) - 1)] | None = None
    metadata: Annotated[dict[Text, Text] | None, few(16)] = None
    integrations: None = None

    @model_validator(mode="after")
    def _metadata_fits(self) -> "JobBody":
        pairs = (self.metadata or {}).items()
        if any(not 0 < len(k) <= 64 or len(v) > 512 for k, v in pairs):
            raise ValueError("metadata takes keys of 64 and values of 512 characters")
        return self


class TenantLimitsBody(Body):
    """Limits of a tenant; what is not given keeps its default."""

    _at = "limits."

    max_queued: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_jobs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_dataset_bytes: Annotated[int, Field(ge=1, le=1 << 50)] | None = None
    requests_per_minute: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    tokens_per_day: Annotated[int, Field(ge=1, le=1 << 50)] | None = None


class TenantBody(Body):
    """`POST /v1/tenants`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "acme"}]})

    name: Text
    limits: TenantLimitsBody | None = None
    joint_training: bool | None = None


class UserBody(Body):
    """`POST /v1/users`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"id": "alice"}]})

    id: Label


class KeyBody(Body):
    """`POST /v1/keys`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user": "alice", "scopes": ["generate"]}]})

    user: Text | None = None
    scopes: Annotated[list[Text] | None, few(MOST_ENTRIES)] = None


class PromoteBody(Body):
    """`POST /v1/prefixes/{name}/promote`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"version": 2}]})

    version: Annotated[int, Field(ge=1, le=999_999_999)]
