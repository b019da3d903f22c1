"""Where the store lives and its limits. Built once by each process and passed by hand."""

from pathlib import Path
from typing import Final

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import SettingsConfigDict

from prefix_store.database_settings import DatabaseSettings, with_driver
from prefix_store.failpoints import read
from prefix_store.secret_files import no_sample

BASES: Final = frozenset({"gpt2-mini", "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2"})


class StoreSettings(DatabaseSettings):
    """Settings of one store; what is not given is read from `PREFIX_<NAME>` in the environment.

    Attributes:
        data_dir: holds `data/` (what backups copy) and, beside it, `secrets/`.
        ledger_dir: holds the ledger of deletions; `ledger/` beside `data/` and `secrets/` if None.
        blobs_url: `s3://bucket` or `s3://bucket/prefix`; sealed files lie under `data/` if None.
        blobs_endpoint: of a store that is not AWS's, `https://host:port`.
        blobs_region: of the bucket.
        blobs_timeout_seconds: how long one request to the object storage may take.
        redis_url: `redis://`, `rediss://` or `unix://`; None asks no Redis.
        redis_prefix: begins every key and channel there; the installation's own if None.
        redis_blob_seconds: how long a sealed prefix lies in Redis.
        admin_key: the operator's key; made and kept in `secrets/admin_key` if None.
        lease_seconds: a claimed job is free again this long after its last heartbeat, by the database's clock.
        max_attempts: crashes of its worker after which a job is given up.
        process_dead_after: seconds without a beat after which a serving process counts as dead.
        max_upload_bytes: largest dataset, plaintext.
        max_line_bytes: longest line of a dataset.
        max_rows: most rows of a dataset.
        max_files: most datasets of a tenant.
        max_users: most users and tasks of a tenant.
        max_keys: most good keys of a tenant, its own and its users'.
        failpoints: places at which this process is made to fail, for tests (`failpoints.py`); none if empty.
        reserved_names: names that no user, task or prefix may have, beside `task`: the base models' ids.
    """

    model_config = SettingsConfigDict(
        env_prefix="PREFIX_",
        frozen=True,
        extra="ignore",
        env_ignore_empty=True,
        hide_input_in_errors=True,  # URLs hold passwords
    )

    data_dir: Path = Path("prefixserve-data")
    ledger_dir: Path | None = None
    blobs_url: str | None = None
    blobs_endpoint: str | None = None
    blobs_region: str = "us-east-1"
    blobs_timeout_seconds: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    redis_url: SecretStr | None = None
    redis_prefix: str | None = Field(default=None, min_length=1, max_length=64, pattern=r"^[A-Za-z0-9._:-]+$")
    redis_blob_seconds: int = Field(default=600, ge=1, le=86_400)
    admin_key: SecretStr | None = None
    lease_seconds: float = Field(default=30.0, gt=0)
    max_attempts: int = Field(default=3, ge=1)
    process_dead_after: float = Field(default=4.0, gt=0)
    max_upload_bytes: int = Field(default=64 << 20, ge=1)
    max_line_bytes: int = Field(default=1 << 20, ge=16)
    max_rows: int = Field(default=200_000, ge=1)
    max_files: int = Field(default=100_000, ge=1)
    max_users: int = Field(default=100_000, ge=1)
    max_keys: int = Field(default=200_000, ge=1)
    failpoints: str = ""
    reserved_names: frozenset[str] = BASES

    _no_sample_either = field_validator("redis_url", "admin_key")(no_sample)

    @field_validator("failpoints")
    @classmethod
    def _known(cls, value: str) -> str:
        read(value)
        return value

    @property
    def ledger_folder(self) -> Path:
        """Where the ledger of deletions lies."""
        return self.data_dir / "ledger" if self.ledger_dir is None else self.ledger_dir

    @property
    def url(self) -> str:
        """The database's URL, as the application's role."""
        if self.database_url is None:
            return f"sqlite:///{self.data_dir / 'data' / 'store.sqlite3'}"
        return with_driver(self.database_url)

    @property
    def system_url(self) -> str:
        """The same as the system role."""
        return self.url if self.system_database_url is None else with_driver(self.system_database_url)

    @property
    def owner_url(self) -> str:
        """The same as the role that the tables belong to."""
        return self.url if self.owner_database_url is None else with_driver(self.owner_database_url)
