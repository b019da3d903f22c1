"""One truth: tenants, owners, keys, datasets, prefixes, jobs and their erasure. Knows no tensors and no HTTP."""

from prefix_store.audit import Audit, AuditLog
from prefix_store.backup import Backups
from prefix_store.blob_cache import BlobCache
from prefix_store.blobs import Blobs
from prefix_store.claims import Claims
from prefix_store.core import Core
from prefix_store.crypto import MasterKey
from prefix_store.datasets import Datasets
from prefix_store.db import Database, SystemDatabase, ping
from prefix_store.engines import open_engine
from prefix_store.erasure import Erasures
from prefix_store.errors import StoreError
from prefix_store.failpoints import arm
from prefix_store.feed import Acknowledgements, Feed
from prefix_store.fsck import Fsck
from prefix_store.janitor import Janitor
from prefix_store.jobs import Jobs
from prefix_store.key_lookup import KeyLookup
from prefix_store.keys import Keys
from prefix_store.ledger import Ledger
from prefix_store.local_files import LocalFiles
from prefix_store.migrate import check_migrated, migrate
from prefix_store.owners import Owners
from prefix_store.rates import Rates
from prefix_store.redis_link import RedisLink
from prefix_store.registry import Registry
from prefix_store.restore import Restore
from prefix_store.sealed_files import SealedFiles
from prefix_store.secrets_folder import open_secrets
from prefix_store.settings import StoreSettings
from prefix_store.tenants import Tenants
from prefix_store.unfinished import UnfinishedErasures
from prefix_store.usage import Usage
from prefix_store.wakes import Wakes

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
        self.ledger = Ledger(
            core.settings.ledger_folder, core.secrets.pepper, core.settings.data_dir / "data"
        )
        self.fsck = Fsck(core, owner)
        self.backups = Backups(core, owner, self.ledger)
        self.restore = Restore(core, system, owner, self.ledger)
        self.keys: KeyLookup = KeyLookup(core, system)
        self.erasure: UnfinishedErasures = UnfinishedErasures(core, system)
        self.jobs: Claims = Claims(core, system)
        self.feed: Feed = Feed(core, system)
        self.janitor = Janitor(core, system, self.feed)
        self.rates = Rates(core.link)
        self.wakes = Wakes(core.link)
        for database in (core.database, system):
            database.on_news = self.wakes.tell

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
        self.wakes.close()
        for database in (self._core.database, self._system, self._owner):
            database.close()
        if self._core.link is not None:
            self._core.link.close()


def open_store(settings: StoreSettings) -> Store:
    """Open a store, making its folders and secrets if they are missing; does not migrate.

    Raises:
        StoreError: an admin key too short to be safe, a damaged key file, or a setting that cannot be right.
    """
    arm(settings.failpoints)
    settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    secrets = open_secrets(settings.data_dir, settings.admin_key)
    (settings.data_dir / "data").mkdir(exist_ok=True, mode=0o700)
    key = MasterKey(secrets.master_key)
    link = _link(settings, key)
    blobs = Blobs(_files(settings), key, _cache(settings, link))
    engines = {
        url: open_engine(url, settings.waits)
        for url in (settings.url, settings.system_url, settings.owner_url)
    }
    audit = Audit(secrets.pepper, Ledger(settings.ledger_folder, secrets.pepper, settings.data_dir / "data"))
    core = Core(settings, Database(engines[settings.url]), blobs, secrets, audit, link)
    return Store(core, *(SystemDatabase(engines[url]) for url in (settings.system_url, settings.owner_url)))


def _files(settings: StoreSettings) -> SealedFiles:
    data = settings.data_dir / "data"
    if settings.blobs_url is None:
        return LocalFiles(data / "blobs")
    try:
        from prefix_store.bucket_versions import address_of  # noqa: PLC0415 - an extra, which local files do without
        from prefix_store.object_storage import ObjectStorage  # noqa: PLC0415
    except ModuleNotFoundError as error:
        text = f"PREFIX_BLOBS_URL needs {error.name}; install prefixserve[s3]"
        raise StoreError(text) from None
    where = (settings.blobs_url, settings.blobs_endpoint, settings.blobs_region)
    return ObjectStorage(address_of(*where, settings.blobs_timeout_seconds), data)


def _link(settings: StoreSettings, key: MasterKey) -> RedisLink | None:
    if settings.redis_url is None:
        return None
    own = settings.redis_prefix or f"prefixserve:{key.key_id.hex()[:12]}"
    return RedisLink(settings.redis_url.get_secret_value(), own)


def _cache(settings: StoreSettings, link: RedisLink | None) -> BlobCache | None:
    """A local file is nearer than Redis, so only what lies in an object storage is cached."""
    if link is None or settings.blobs_url is None:
        return None
    return BlobCache(link, settings.redis_blob_seconds)
