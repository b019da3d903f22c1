"""What every part of the store is built on: settings, database, files, secrets, audit."""

from dataclasses import dataclass

from prefix_store.audit import Audit
from prefix_store.blobs import Blobs
from prefix_store.db import Database
from prefix_store.redis_link import RedisLink
from prefix_store.secrets_folder import Secrets
from prefix_store.settings import StoreSettings


@dataclass(frozen=True, slots=True)
class Core:
    """Shared by the parts; private to the package."""

    settings: StoreSettings
    database: Database
    blobs: Blobs
    secrets: Secrets
    audit: Audit
    link: RedisLink | None = None
