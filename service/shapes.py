"""What answers look like, as types: routes are checked against them, and the OpenAPI document is made from them."""

from typing import Any, Generic, Literal, NotRequired, TypeVar

from typing_extensions import TypedDict

T = TypeVar("T")
ErrorKind = Literal["invalid_request_error", "permission_error", "rate_limit_error", "server_error"]


class ErrorDetail(TypedDict):
    """What went wrong; `param` names the field."""

    message: str
    type: ErrorKind
    param: str | None
    code: str


class ErrorAnswer(TypedDict):
    """OpenAI's envelope, which every error has."""

    error: ErrorDetail


class Page(TypedDict, Generic[T]):
    """A part of a list; `last_id` is what the next page's `after` names."""

    object: Literal["list"]
    data: list[T]
    first_id: str | None
    last_id: str | None
    has_more: bool


class Everything(TypedDict, Generic[T]):
    """A list that comes whole."""

    object: Literal["list"]
    data: list[T]


class Deleted(TypedDict):
    """`deleted`: no process serves it any more; `purge`: whether its bytes are removed, too."""

    id: str
    object: Literal["user", "task", "tenant", "file", "model", "key"]
    deleted: bool
    purge: NotRequired[Literal["done", "pending"]]
    erasure: NotRequired[str]


class Erasing(TypedDict):
    """How far an erasure is."""

    id: str
    object: Literal["erasure"]
    kind: Literal["user", "task", "tenant"]
    state: Literal["purging", "done"]
    deleted: bool
    created_at: int
    done_at: int | None


class Limits(TypedDict):
    """Limits of a tenant."""

    max_queued: int
    max_jobs: int
    max_dataset_bytes: int
    requests_per_minute: int | None
    tokens_per_day: int | None


class TenantShown(TypedDict):
    """A customer."""

    id: str
    name: str
    object: Literal["tenant"]
    created_at: int
    limits: Limits
    joint_training: bool


class TenantMade(TenantShown):
    """A customer with its first key, shown once."""

    api_key: str


class OwnerShown(TypedDict):
    """A user or task."""

    id: str
    object: Literal["user", "task"]
    created_at: int


class KeyShown(TypedDict):
    """A live key."""

    id: str
    object: Literal["key"]
    user: str | None
    scopes: list[str]
    last4: str
    created_at: int
    last_used_day: str | None


class KeyMade(TypedDict):
    """A new key, shown once."""

    id: str
    object: Literal["key"]
    api_key: str
    user: str | None
    scopes: list[str]
    created_at: int


class FileShown(TypedDict):
    """A dataset, or results of a job, as OpenAI's file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"]
    user: str | None
    task: str | None
    rows: int


class ModelShown(TypedDict):
    """The base model, or a prefix, version or checkpoint as OpenAI's model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    prefix_version: NotRequired[str]
    prefix_length: NotRequired[int]


class VersionShown(TypedDict):
    """One version of a prefix; `bytes` of its tensor file."""

    version: int
    id: str
    created_at: int
    prefix_length: int
    text_starts_at: int
    bytes: int
    job_id: str
    live: bool
    metrics: dict[str, Any]


class PrefixShown(TypedDict):
    """A prefix with its versions, newest first."""

    id: str
    object: Literal["prefix"]
    owner: str
    created_at: int
    live_version: int | None
    versions: list[VersionShown]


class JobErrorShown(TypedDict):
    """Why a job failed."""

    code: str
    message: str
    param: str | None


class SupervisedShown(TypedDict):
    """What a job goes by."""

    hyperparameters: dict[str, Any]


class MethodShown(TypedDict):
    """How a job trains."""

    type: Literal["supervised"]
    supervised: SupervisedShown


class JobShown(TypedDict):
    """A job as OpenAI's, with fields of our own from `evaluation` on."""

    id: str
    object: Literal["fine_tuning.job"]
    created_at: int
    finished_at: int | None
    model: str
    fine_tuned_model: str | None
    organization_id: str
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    hyperparameters: dict[str, Any]
    training_file: str | list[str]
    validation_file: str | None
    result_files: list[str]
    trained_tokens: int | None
    seed: int
    error: JobErrorShown | None
    estimated_finish: int | None
    method: MethodShown
    metadata: dict[str, str] | None
    integrations: list[Any]
    user_provided_suffix: str | None
    evaluation: dict[str, Any] | None
    prefix: str
    promoted: bool | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None


class EventShown(TypedDict):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"]
    created_at: int
    level: str
    type: str
    message: str
    data: dict[str, Any] | None


class CheckpointShown(TypedDict):
    """The last checkpoint of an open job."""

    id: str
    object: Literal["fine_tuning.job.checkpoint"]
    created_at: int
    fine_tuning_job_id: str
    fine_tuned_model_checkpoint: str
    step_number: int
    metrics: dict[str, Any]


class UsageShown(TypedDict):
    """One owner's use of one day (UTC)."""

    day: str
    user: str | None
    task: str | None
    requests: int
    prompt_tokens: int
    completion_tokens: int


class Health(TypedDict):
    """`ok`, or why not."""

    status: str
