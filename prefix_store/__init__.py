"""One truth: tenants, owners, keys, datasets, prefixes, jobs and their erasure. Knows no tensors and no HTTP."""

from collections.abc import Mapping
from contextlib import suppress

from sqlalchemy import Engine

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
from prefix_store.errors import NotMigrated, StoreError, Unavailable
from prefix_store.failpoints import arm
from prefix_store.feed import Acknowledgements, Feed
from prefix_store.fsck import Fsck
from prefix_store.installation import Installation
from prefix_store.janitor import Janitor
from prefix_store.jobs import Jobs
from prefix_store.key_lookup import KeyLookup
from prefix_store.keys import Keys
from prefix_store.ledger import Ledger
from prefix_store.local_files import LocalFiles, make_folder
from prefix_store.migrate import check_migrated, migrate
from prefix_store.owners import Owners
from prefix_store.rates import Rates
from prefix_store.redis_link import RedisLink
from prefix_store.registry import Registry
from prefix_store.restore import Restore
from prefix_store.sealed_files import SealedFiles
from prefix_store.secrets_folder import open_secrets, read_keys
from prefix_store.settings import StoreSettings
from prefix_store.tenants import Tenants
from prefix_store.unfinished import UnfinishedErasures
from prefix_store.usage import Usage
from prefix_store.wakes import Wakes

__all__ = ["ScopedStore", "Store", "StoreSettings", "adopt_secrets", "open_store"]


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

    def __init__(
        self, core: Core, system: SystemDatabase, owner: SystemDatabase, installation: Installation
    ) -> None:
        super().__init__(core)
        self._system, self._owner, self._installation = system, owner, installation
        self.scoped = ScopedStore(core)
        self.audit = AuditLog(owner, core.secrets.pepper)
        self.ledger = Ledger(
            core.settings.ledger_folder, core.secrets.pepper, core.settings.data_dir / "data"
        )
        self.fsck = Fsck(core, owner)
        self.backups = Backups(core, owner, self.ledger)
        self.restore = Restore(core, system, owner, self.ledger, installation)
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
        self.settle_if_it_answers()

    def check_migrated(self) -> None:
        """Raise NotMigrated unless this code can run on the schema, UnsafeRole if a role is not what it should be.

        ForeignSecrets: the database belongs to an installation with other secrets.
        """
        check_migrated(self.settings, self._core.database, self._system)
        self._installation.settle(self._core.secrets, self._core.blobs)

    def settle_if_it_answers(self) -> None:
        """Raise ForeignSecrets if the database belongs to an installation with other secrets and can say so by now.

        Leaves no connection open, as opening a store never did.
        """
        try:
            with suppress(Unavailable, NotMigrated):  # for `check_migrated` to say
                self._installation.settle(self._core.secrets, self._core.blobs)
        finally:
            for database in (self._core.database, self._owner):
                database.close()

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

    A database that is away is told of by `prepare`, unless the secrets are missing: whether they may be made is the
    database's to say.

    Raises:
        StoreError: an admin key too short to be safe, a damaged key file, or a setting that cannot be right.
        ForeignSecrets: the database belongs to an installation whose secrets are not those here.
        Unavailable: secrets are missing, and the database does not answer.
    """
    arm(settings.failpoints)
    make_folder(settings.data_dir)
    engines = _engines(settings)
    try:
        return _opened(settings, engines)
    except BaseException:
        for engine in engines.values():
            engine.dispose()
        raise


def adopt_secrets(settings: StoreSettings) -> None:
    """After a migration by itself: have a database of before `installation` say whose it is, if its secrets are here.

    Raises nothing for secrets that are missing, damaged or another's, nor for a server that is away: the first process
    that opens the store says so.
    """
    with suppress(StoreError, OSError):
        keys = read_keys(settings.data_dir)
        engines = _engines(settings)
        try:
            owner = SystemDatabase(engines[settings.owner_url])
            installation = Installation(settings, Database(engines[settings.url]), owner)
            installation.adopt(keys, Blobs(_files(settings), MasterKey(keys.master_key), None))
        finally:
            for engine in engines.values():
                engine.dispose()


def _engines(settings: StoreSettings) -> dict[str, Engine]:
    urls = (settings.url, settings.system_url, settings.owner_url)
    return {url: open_engine(url, settings.waits) for url in urls}


def _opened(settings: StoreSettings, engines: Mapping[str, Engine]) -> Store:
    database = Database(engines[settings.url])
    system, owner = (SystemDatabase(engines[url]) for url in (settings.system_url, settings.owner_url))
    installation = Installation(settings, database, owner)
    installation.allow_new_secrets()
    secrets = open_secrets(settings.data_dir, settings.admin_key)
    data = settings.data_dir / "data"
    data.mkdir(exist_ok=True, mode=0o700)
    key = MasterKey(secrets.master_key)
    link = _link(settings, key)
    blobs = Blobs(_files(settings), key, _cache(settings, link))
    audit = Audit(secrets.pepper, Ledger(settings.ledger_folder, secrets.pepper, data))
    store = Store(Core(settings, database, blobs, secrets, audit, link), system, owner, installation)
    store.settle_if_it_answers()
    return store


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
