"""Which database a store is in, as whom it is spoken to, and how long anything may wait there."""

from pathlib import Path
from typing import Any

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from prefix_store.engines import Waits
from prefix_store.secret_files import in_files, no_sample


class DatabaseSettings(BaseSettings):
    """The database's share of the store's settings; the waits and the pool are PostgreSQL's.

    Attributes:
        secret_files: a folder with files named as settings, `prefix_database_url`, each of which holds its value; what
            is given otherwise goes before.
        database_url: SQLAlchemy URL; SQLite under `data/` if None. With a system role, as the application's role.
        system_database_url: the same database as the system role; None: one role does everything.
        owner_database_url: the same database as the role that the tables belong to, for `prefixserve migrate` and
            `audit-verify` alone; None: `database_url`.
        migrate: whether a process that starts brings the schema up to date; None: unless there is a system role.
        database_pool_size: connections that a process keeps to the database, for each of its roles.
        database_pool_overflow: more that it opens when all are in use.
        database_pool_seconds: how long a request waits for one of them.
        database_connect_seconds: how long connecting may take.
        database_silence_seconds: how long a server may acknowledge nothing before its connection is given up.
        database_lock_seconds: how long a statement waits for a row that another transaction holds.
        database_statement_seconds: how long a statement may take.
        database_idle_seconds: how long the server lets a transaction lie idle before it ends it.
    """

    secret_files: Path | None = None
    database_url: str | None = Field(default=None, repr=False)
    system_database_url: str | None = Field(default=None, repr=False)
    owner_database_url: str | None = Field(default=None, repr=False)
    migrate: bool | None = None
    database_pool_size: int = Field(default=10, ge=2)
    database_pool_overflow: int = Field(default=20, ge=0)
    database_pool_seconds: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    database_connect_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    database_silence_seconds: float = Field(default=15.0, gt=0, allow_inf_nan=False)
    database_lock_seconds: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    database_statement_seconds: float = Field(default=5.0, gt=0, allow_inf_nan=False)
    database_idle_seconds: float = Field(default=30.0, gt=0, allow_inf_nan=False)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Arguments, then the environment, then secrets in files."""
        del dotenv_settings
        return init_settings, env_settings, in_files(settings_cls, file_secret_settings)

    _no_sample = field_validator("database_url", "system_database_url", "owner_database_url")(no_sample)

    @field_validator("system_database_url")
    @classmethod
    def _another_role(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        try:
            system, application = make_url(value), make_url(info.data.get("database_url") or "sqlite://")
        except ArgumentError:
            raise ValueError("must be a URL such as postgresql://role:password@host/database") from None
        if {system.get_backend_name(), application.get_backend_name()} != {"postgresql"}:
            raise ValueError("needs PREFIX_DATABASE_URL beside it, both of a PostgreSQL server")
        if system.database != application.database:
            raise ValueError("must name the same database as PREFIX_DATABASE_URL")
        if not system.username or not application.username:
            raise ValueError("needs the roles' names in both URLs: postgresql://role:password@host/database")
        if system.username == application.username:
            raise ValueError(
                "must log in as another role than PREFIX_DATABASE_URL; with one role leave it unset"
            )
        return value

    @field_validator("migrate")
    @classmethod
    def _by_the_owner(cls, value: bool | None, info: ValidationInfo) -> bool | None:
        given: dict[str, Any] = info.data
        if value and given.get("system_database_url") and not given.get("owner_database_url"):
            raise ValueError("needs PREFIX_OWNER_DATABASE_URL: the application's role may change no table")
        return value

    @property
    def two_roles(self) -> bool:
        """Whether the system role is another than the application's."""
        return self.system_database_url is not None

    @property
    def migrates_at_start(self) -> bool:
        """Whether a process that starts brings the schema up to date."""
        return not self.two_roles if self.migrate is None else self.migrate

    @property
    def waits(self) -> Waits:
        """What engines take."""
        return Waits(
            pool_size=self.database_pool_size,
            pool_overflow=self.database_pool_overflow,
            pool=self.database_pool_seconds,
            connect=self.database_connect_seconds,
            silence=self.database_silence_seconds,
            lock=self.database_lock_seconds,
            statement=self.database_statement_seconds,
            idle=self.database_idle_seconds,
        )


def with_driver(url: str) -> str:
    """A bare `postgresql://` means the driver that is installed."""
    scheme, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}" if scheme in {"postgres", "postgresql"} else url
