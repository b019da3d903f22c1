"""PostgreSQL databases for tests: an owner, an application's role and a system role, none of them a superuser."""

import contextlib
import os
import secrets

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url

POSTGRES = os.environ.get("PREFIX_TEST_POSTGRES_URL")
DATABASES = [
    "sqlite",
    pytest.param(
        "postgresql",
        marks=pytest.mark.skipif(not POSTGRES, reason="PREFIX_TEST_POSTGRES_URL names no PostgreSQL server"),
    ),
]


@contextlib.contextmanager
def environment(values, names):
    before = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update({name: value for name, value in before.items() if value is not None})


@contextlib.contextmanager
def server():
    """A connection of the server's superuser."""
    admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")
    try:
        with admin.connect() as connection:
            yield connection
    finally:
        admin.dispose()


@contextlib.contextmanager
def production_database():
    """URLs of a fresh database as its `application`, its `system` and its `owner`; `migrate` makes the first two."""
    name = f"prefixserve_test_{secrets.token_hex(6)}"
    password = secrets.token_hex(8)
    with server() as connection:
        connection.execute(text(f"CREATE ROLE {name}_owner LOGIN CREATEROLE PASSWORD '{password}'"))
        connection.execute(text(f"CREATE DATABASE {name} OWNER {name}_owner"))
    kinds = ("application", "system", "owner")
    place = make_url(POSTGRES).set(database=name, password=password)
    try:
        yield {
            kind: place.set(username=f"{name}_{kind}").render_as_string(hide_password=False) for kind in kinds
        }
    finally:
        with server() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
            for kind in kinds:
                connection.execute(text(f"DROP ROLE IF EXISTS {name}_{kind}"))


@contextlib.contextmanager
def everything(store):
    """A transaction under no policy, as nobody but a test has one: to look at rows, and to spoil them."""
    if store._core.database.is_sqlite:
        with store._system.write() as connection:
            yield connection
        return
    engine = create_engine(make_url(POSTGRES).set(database=make_url(store.settings.url).database))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()
