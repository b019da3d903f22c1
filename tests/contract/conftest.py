import pytest
from production_making import beside
from trainer_making import base_folder

from prefix_engine import load_base
from prefix_store import StoreSettings, open_store
from prefix_store.scope import Admin
from service.revocation import STALE_S


@pytest.fixture
def lease_seconds():
    """Longer than any machine stands still; modules where leases run out have one of their own."""
    return 60.0


@pytest.fixture
def settings(tmp_path, database_url, lease_seconds):
    more = beside(database_url)
    return StoreSettings(data_dir=tmp_path, database_url=database_url, lease_seconds=lease_seconds, **more)


@pytest.fixture
def store(settings):
    opened = open_store(settings)
    opened.migrate()
    yield opened
    opened.close()


@pytest.fixture
def tenant(store):
    """A tenant's own scope."""
    _, key = store.tenants.create(Admin(), "acme")
    return store.keys.verify(key)


@pytest.fixture
def other_tenant(store):
    _, key = store.tenants.create(Admin(), "globex")
    return store.keys.verify(key)


@pytest.fixture
def alice(store, tenant):
    return store.owners.create_user(tenant, "alice")


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A service on a machine that stands still for seconds neither falls silent nor puts off what it erases."""
    monkeypatch.setattr("service.revocation.STALE_S", 60.0)
    monkeypatch.setattr("service.deletion.PATIENCE_S", 45.0)
    monkeypatch.setattr("service.erasing.PURGE_S", 45.0)
    monkeypatch.setattr("prefix_store.db._SCRUB_MS", 60_000)


@pytest.fixture
def unhurried(monkeypatch):
    """An answer whose engine waits for its turn is left the time to end with its error before it is cut."""
    monkeypatch.setattr("service.revocation.GRACE_S", 30.0)
    monkeypatch.setattr("service.revocation._LOAD_S", 60.0)


@pytest.fixture
def soon_blind(monkeypatch):
    """A service falls silent as soon as in production, when it sees the database no more."""
    monkeypatch.setattr("service.revocation.STALE_S", STALE_S)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny checkpoint as the hub has them."""
    return base_folder(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(folder):
    return load_base(folder, "cpu")
