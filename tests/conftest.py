"""Two forms for every suite: SQLite with local files always; PostgreSQL with an object storage and Redis, the production
form, where PREFIX_TEST_POSTGRES_URL and PREFIX_TEST_REDIS_URL name servers.
"""

import contextlib
import logging

import pytest
import structlog
from database_making import DATABASES, environment, production_database
from hypothesis import HealthCheck, settings
from production_making import clear_redis
from service_making import serving

structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
)

# A busy machine may stand still in the middle of an example.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

URLS = ("PREFIX_SYSTEM_DATABASE_URL", "PREFIX_OWNER_DATABASE_URL")
WAITS = (
    "PREFIX_DATABASE_IDLE_SECONDS",
    "PREFIX_DATABASE_LOCK_SECONDS",
    "PREFIX_DATABASE_STATEMENT_SECONDS",
)


@contextlib.contextmanager
def fresh_database(kind):
    """None for the default SQLite file, else the URL of a fresh PostgreSQL database as the application's role.

    The URLs of the system role and of the tables' owner stand in the environment meanwhile, as in production; no role
    is a superuser. A machine that stands still fails no test.
    """
    if kind == "sqlite":
        with environment({}, URLS + WAITS):
            yield None
        return
    with production_database() as urls:
        values = dict(zip(URLS, (urls["system"], urls["owner"]), strict=True)) | dict.fromkeys(WAITS, "120")
        try:
            with environment(values, URLS + WAITS):
                yield urls["application"]
        finally:
            clear_redis(urls["application"])


@pytest.fixture(params=DATABASES)
def database_url(request):
    with fresh_database(request.param) as url:
        yield url


@pytest.fixture(scope="module", params=DATABASES)
def service(request, tmp_path_factory):
    """A running service that a module's tests share; each makes tenants of its own.

    A job that a test claims is its own for as long as the module runs: nobody beats for it.
    """
    chosen = {"max_upload_bytes": 1 << 20, "lease_seconds": 3600.0}
    with (
        fresh_database(request.param) as url,
        serving(tmp_path_factory.mktemp("service"), url, store=chosen) as running,
    ):
        yield running


@pytest.fixture
def own_service(tmp_path, database_url):
    """A running service for one test alone."""
    with serving(tmp_path, database_url) as running:
        yield running
