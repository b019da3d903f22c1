"""Two forms for every suite: SQLite with local files always; PostgreSQL with an object storage and Redis, the production
form, where PREFIX_TEST_POSTGRES_URL and PREFIX_TEST_REDIS_URL name servers.
"""

import contextlib
import logging
import os
import secrets

import pytest
import structlog
from production_making import clear_redis
from service_making import serving
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

structlog.configure(
    wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
    processors=[structlog.processors.format_exc_info, structlog.processors.KeyValueRenderer()],
)

POSTGRES = os.environ.get("PREFIX_TEST_POSTGRES_URL")
DATABASES = [
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(not POSTGRES, reason="PREFIX_TEST_POSTGRES_URL names no PostgreSQL server"),
    ),
]


@contextlib.contextmanager
def fresh_database(kind):
    """None for the default SQLite file, else the URL of a fresh PostgreSQL database."""
    if kind == "sqlite":
        yield None
        return
    server = make_url(POSTGRES)
    name = f"prefixserve_test_{secrets.token_hex(6)}"
    admin = create_engine(server, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server.set(database=name).render_as_string(hide_password=False)
    try:
        yield url
    finally:
        clear_redis(url)
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


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
