"""One truth: tenants, owners, keys, datasets, prefixes, jobs and their erasure. Knows no tensors and no HTTP."""

from prefix_store.audit import Audit
from prefix_store.blobs import Blobs
from prefix_store.core import Core
from prefix_store.crypto import MasterKey
from prefix_store.datasets import Datasets
from prefix_store.db import Database, ping
from prefix_store.erasure import Erasures
from prefix_store.feed import Feed
from prefix_store.janitor import Janitor
from prefix_store.jobs import Jobs
from prefix_store.keys import Keys
from prefix_store.migrate import check_migrated, migrate
from prefix_store.owners import Owners
from prefix_store.registry import Registry
from prefix_store.secrets_folder import open_secrets
from prefix_store.settings import StoreSettings
from prefix_store.tenants import Tenants
from prefix_store.usage import Usage

__all__ = ["Store", "StoreSettings", "open_store"]


class Store:
    """The parts of one open store; safe to share between threads."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.settings = core.settings
        self.blobs = core.blobs
        self.audit = core.audit
        self.keys = Keys(core)
        self.erasure = Erasures(core)
        self.tenants = Tenants(core, self.keys, self.erasure)
        self.owners = Owners(core)
        self.datasets = Datasets(core)
        self.registry = Registry(core)
        self.jobs = Jobs(core)
        self.feed = Feed(core)
        self.usage = Usage(core)
        self.janitor = Janitor(core, self.feed)

    def migrate(self) -> None:
        """Bring the database to this code's schema; safe when several processes do it at once."""
        migrate(self._core.database, self.settings.data_dir)

    def check_migrated(self) -> None:
        """Raise NotMigrated unless the schema is this code's."""
        check_migrated(self._core.database)

    def ping(self) -> None:
        """Raise unless the database answers."""
        ping(self._core.database)

    def close(self) -> None:
        """Close every connection."""
        self._core.database.close()


def open_store(settings: StoreSettings) -> Store:
    """Open a store, making its folders and secrets if they are missing; does not migrate.

    Raises:
        StoreError: an admin key too short to be safe, or a damaged key file.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secrets = open_secrets(settings.data_dir, settings.admin_key)
    (settings.data_dir / "data").mkdir(exist_ok=True, mode=0o700)
    blobs = Blobs(settings.data_dir / "data" / "blobs", MasterKey(secrets.master_key))
    database = Database(settings.url)
    return Store(Core(settings, database, blobs, secrets, Audit(database, secrets.pepper)))
