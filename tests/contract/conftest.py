import pytest

from prefix_store import StoreSettings, open_store
from prefix_store.scope import Admin


@pytest.fixture
def settings(tmp_path, database_url):
    return StoreSettings(data_dir=tmp_path, database_url=database_url, lease_seconds=2.0)


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
