"""One truth: tenants, owners, keys, datasets, prefixes, jobs and their erasure. Knows no tensors and no HTTP."""

from prefix_store.audit import Audit, AuditLog
from prefix_store.blobs import Blobs
from prefix_store.claims import Claims
from prefix_store.core import Core
from prefix_store.crypto import MasterKey
from prefix_store.datasets import Datasets
from prefix_store.db import Database, SystemDatabase, ping
from prefix_store.engines import open_engine
from prefix_store.erasure import Erasures
from prefix_store.feed import Acknowledgements, Feed
from prefix_store.janitor import Janitor
from prefix_store.jobs import Jobs
from prefix_store.key_lookup import KeyLookup
from prefix_store.keys import Keys
from prefix_store.migrate import check_migrated, migrate
from prefix_store.owners import Owners
from prefix_store.registry import Registry
from prefix_store.secrets_folder import open_secrets
from prefix_store.settings import StoreSettings
from prefix_store.tenants import Tenants
from prefix_store.unfinished import UnfinishedErasures
from prefix_store.usage import Usage

__all__ = ["ScopedStore", "Store", "StoreSettings", "open_store"]


class ScopedStore:
    """The parts that take a scope, an owner or a claim, and all that routes hold; safe to share between threads.

    The system role's connections are nowhere in it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self.settings = core.settings
        self.blobs = core.blobs
        self.keys = Keys(core)
        self.erasure = Erasures(core)
        self.tenants = Tenants(core, self.keys, self.erasure)
        self.owners = Owners(core)
        self.datasets = Datasets(core)
        self.registry = Registry(core)
        self.jobs = Jobs(core)
        self.feed = Acknowledgements(core)
        self.usage = Usage(core)


class Store(ScopedStore):
    """One open store, for the process that opened it: also what looks over all tenants.

    `scoped` is what it hands to whoever acts for a caller.
    """

    def __init__(self, core: Core, system: SystemDatabase, owner: SystemDatabase) -> None:
        super().__init__(core)
        self._system, self._owner = system, owner
        self.scoped = ScopedStore(core)
        self.audit = AuditLog(owner, core.secrets.pepper)
        self.keys: KeyLookup = KeyLookup(core, system)
        self.erasure: UnfinishedErasures = UnfinishedErasures(core, system)
        self.jobs: Claims = Claims(core, system)
        self.feed: Feed = Feed(core, system)
        self.janitor = Janitor(core, system, self.feed)

    def migrate(self) -> None:
        """Bring the database to this code's schema; safe when several processes do it at once."""
        migrate(self.settings)

    def check_migrated(self) -> None:
        """Raise NotMigrated unless this code can run on the schema, UnsafeRole if a role is not what it should be."""
        check_migrated(self.settings, self._core.database, self._system)

    def prepare(self) -> None:
        """What a process does before it uses the store: migrates if it is to, then checks."""
        if self.settings.migrates_at_start:
            self.migrate()
        self.check_migrated()

    def ping(self) -> None:
        """Raise unless the database answers."""
        ping(self._core.database, self._system)

    def close(self) -> None:
        """Close every connection."""
        for database in (self._core.database, self._system, self._owner):
            database.close()


def open_store(settings: StoreSettings) -> Store:
    """Open a store, making its folders and secrets if they are missing; does not migrate.

    Raises:
        StoreError: an admin key too short to be safe, or a damaged key file.
    """
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secrets = open_secrets(settings.data_dir, settings.admin_key)
    (settings.data_dir / "data").mkdir(exist_ok=True, mode=0o700)
    blobs = Blobs(settings.data_dir / "data" / "blobs", MasterKey(secrets.master_key))
    engines = {
        url: open_engine(url, settings.waits)
        for url in (settings.url, settings.system_url, settings.owner_url)
    }
    core = Core(settings, Database(engines[settings.url]), blobs, secrets, Audit(secrets.pepper))
    return Store(core, *(SystemDatabase(engines[url]) for url in (settings.system_url, settings.owner_url)))
