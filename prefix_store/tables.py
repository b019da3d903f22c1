"""Every table, private to this package. Keys of owned rows carry tenant and owner; no foreign key leads across."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    false,
    literal_column,
    text,
)

metadata = MetaData()
LIVE = literal_column("'live'", String)  # no parameter: else no planner takes the partial indexes
_Serial = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts rows up only in INTEGER keys


def _partial(name: str, *columns: str, where: str, unique: bool = False) -> Index:
    return Index(name, *columns, unique=unique, sqlite_where=text(where), postgresql_where=text(where))


def _owned(*more: Column[object]) -> list[Column[object]]:
    return [*(Column[object](name, String, primary_key=True) for name in ("tenant_id", "owner_id")), *more]


def _of_owner() -> ForeignKeyConstraint:
    return ForeignKeyConstraint(["tenant_id", "owner_id"], ["owners.tenant_id", "owners.owner_id"])


tenants = Table(
    "tenants",
    metadata,
    Column("id", String, primary_key=True),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("max_queued", Integer, nullable=False),
    Column("max_jobs", Integer, nullable=False),
    Column("max_dataset_bytes", BigInteger, nullable=False),
    Column("requests_per_minute", Integer),
    Column("tokens_per_day", BigInteger),
    Column("joint_training", Boolean, nullable=False, server_default=false()),
    _partial("one_live_tenant", "name", where="state = 'live'", unique=True),
)
owners = Table(
    "owners",
    metadata,
    *_owned(),
    Column("kind", String, nullable=False),
    Column("name", String, nullable=False),
    Column("state", String, nullable=False),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
    _partial("one_live_owner", "tenant_id", "kind", "name", where="state = 'live'", unique=True),
)
api_keys = Table(
    "api_keys",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("owner_id", String),
    Column("digest", String, nullable=False),
    Column("last4", String, nullable=False),
    Column("grants", JSON, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revoked_at", Float),
    Column("last_used_day", String),
    ForeignKeyConstraint(["tenant_id"], ["tenants.id"]),
    _of_owner(),
    Index("keys_of_tenant", "tenant_id", "owner_id"),
)
datasets = Table(
    "datasets",
    metadata,
    *_owned(Column("id", String, primary_key=True)),
    Column("filename", String, nullable=False),
    Column("purpose", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("rows", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("created_at", Float, nullable=False),
    _of_owner(),
    UniqueConstraint("id"),
)
prefixes = Table(
    "prefixes",
    metadata,
    *_owned(Column("prefix_id", String, primary_key=True)),
    Column("name", String, nullable=False),
    Column("live_version_id", String),
    Column("last_number", Integer, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("deleted_at", Float),
    _of_owner(),
    _partial("one_prefix_of_name", "tenant_id", "owner_id", "name", where="deleted_at IS NULL", unique=True),
    Index("prefixes_of_name", "tenant_id", "owner_id", "name"),
)
versions = Table(
    "versions",
    metadata,
    *_owned(Column("version_id", String, primary_key=True)),
    Column("prefix_id", String, nullable=False),
    Column("number", Integer, nullable=False),
    Column("m", Integer, nullable=False),
    Column("position_offset", Integer, nullable=False),
    Column("base_fingerprint", String, nullable=False),
    Column("template", JSON, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("sha256", String, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("job_id", String, nullable=False),
    Column("was_live", Boolean, nullable=False),
    Column("created_at", Float, nullable=False),
    ForeignKeyConstraint(
        ["tenant_id", "owner_id", "prefix_id"],
        ["prefixes.tenant_id", "prefixes.owner_id", "prefixes.prefix_id"],
    ),
    UniqueConstraint("prefix_id", "number"),
    UniqueConstraint("version_id"),
)
version_sources = Table(
    "version_sources",
    metadata,
    *_owned(Column("version_id", String, primary_key=True), Column("dataset_id", String, primary_key=True)),
    Column("source_owner_id", String, nullable=False),
    ForeignKeyConstraint(
        ["tenant_id", "owner_id", "version_id"],
        ["versions.tenant_id", "versions.owner_id", "versions.version_id"],
    ),
    Index("versions_of_source", "tenant_id", "source_owner_id"),
)
jobs = Table(
    "jobs",
    metadata,
    *_owned(Column("id", String, primary_key=True)),
    Column("seq", _Serial, nullable=False),
    Column("prefix_id", String, nullable=False),
    Column("status", String, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("progress", JSON),
    Column("result", JSON),
    Column("error", JSON),
    Column("fine_tuned_model", String),
    Column("attempt", Integer, nullable=False),
    Column("crashes", Integer, nullable=False),
    Column("not_begun", Integer, nullable=False, server_default="0"),
    Column("company", String, nullable=False, server_default="open"),
    Column("worker", String),
    Column("run_at", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("started_at", Float),
    Column("finished_at", Float),
    ForeignKeyConstraint(
        ["tenant_id", "owner_id", "prefix_id"],
        ["prefixes.tenant_id", "prefixes.owner_id", "prefixes.prefix_id"],
    ),
    UniqueConstraint("id"),
    UniqueConstraint("seq"),
    _partial("one_running_job", "prefix_id", where="status = 'running'", unique=True),
    Index("jobs_to_claim", "status", "run_at"),
    Index("jobs_of_tenant", "tenant_id", "seq"),
)
job_sources = Table(
    "job_sources",
    metadata,
    *_owned(Column("job_id", String, primary_key=True), Column("dataset_id", String, primary_key=True)),
    Column("source_owner_id", String, nullable=False),
    Column("role", String, nullable=False),
    ForeignKeyConstraint(["tenant_id", "owner_id", "job_id"], ["jobs.tenant_id", "jobs.owner_id", "jobs.id"]),
    Index("jobs_of_source", "tenant_id", "source_owner_id"),
)
job_events = Table(
    "job_events",
    metadata,
    Column("seq", _Serial, primary_key=True, autoincrement=True),
    Column("tenant_id", String, nullable=False),
    Column("owner_id", String, nullable=False),
    Column("job_id", String, nullable=False),
    Column("id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("level", String, nullable=False),
    Column("type", String, nullable=False),
    Column("message", String, nullable=False),
    Column("data", JSON),
    ForeignKeyConstraint(["tenant_id", "owner_id", "job_id"], ["jobs.tenant_id", "jobs.owner_id", "jobs.id"]),
    UniqueConstraint("id"),
    Index("events_of_job", "tenant_id", "owner_id", "job_id", "seq"),
)
checkpoints = Table(
    "checkpoints",
    metadata,
    *_owned(Column("job_id", String, primary_key=True)),
    Column("object_id", String, nullable=False),
    Column("update_number", Integer, nullable=False),
    Column("sha256", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("prefix_object_id", String),
    Column("prefix_sha256", String),
    Column("prefix_at", Float),
    Column("m", Integer),
    Column("position_offset", Integer),
    Column("base_fingerprint", String),
    Column("template", JSON),
    Column("metrics", JSON),
    ForeignKeyConstraint(["tenant_id", "owner_id", "job_id"], ["jobs.tenant_id", "jobs.owner_id", "jobs.id"]),
)
litter = Table("litter", metadata, *_owned(Column("object_id", String, primary_key=True)))
intents = Table(
    "intents",
    metadata,
    *_owned(Column("object_id", String, primary_key=True)),
    Column("job_id", String),
    Column("noted_at", Float, nullable=False),
)
counters = Table(
    "counters",
    metadata,
    Column("name", String, primary_key=True),
    Column("value", BigInteger, nullable=False),
)
changes = Table(
    "changes",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", String, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("owner_id", String, nullable=False),
    Column("version_id", String),
    Column("at", Float, nullable=False),
    Column("job_id", String),
)
processes = Table(
    "processes",
    metadata,
    Column("id", String, primary_key=True),
    Column("kind", String, nullable=False),
    Column("position", BigInteger, nullable=False),
    Column("beat_at", Float, nullable=False),
    Column("machine", String, nullable=False, server_default=""),
    Column("generating", Integer, nullable=False, server_default="0"),
)
erasures = Table(
    "erasures",
    metadata,
    Column("id", String, primary_key=True),
    Column("tenant_id", String, nullable=False),
    Column("owner_id", String),
    Column("kind", String, nullable=False),
    Column("state", String, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("done_at", Float),
)
usage = Table(
    "usage",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("owner_id", String, primary_key=True),
    Column("day", String, primary_key=True),
    Column("requests", BigInteger, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
)
audit = Table(
    "audit",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", Float, nullable=False),
    Column("tenant_id", String, nullable=False),
    Column("key_id", String, nullable=False),
    Column("action", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("mac", String, nullable=False),
)
idempotency = Table(
    "idempotency",
    metadata,
    Column("tenant_id", String, primary_key=True),
    Column("owner_id", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("request_hash", String, nullable=False),
    Column("object_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
)
installation = Table(
    "installation",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    *(Column(name, String, nullable=False) for name in ("key_id", "pepper_proof")),
)
compatibility = Table("compatibility", metadata, Column("oldest", String, primary_key=True))
