"""Roles, their settings, and how long anything waits for PostgreSQL."""

import base64
import hashlib
import hmac
import socket

import pytest
from database_making import DATABASES, POSTGRES, environment, everything
from pydantic import ValidationError
from sqlalchemy import select, text
from sqlalchemy.engine import make_url
from store_making import complete, files_on_disk, publish, queue

from prefix_store import StoreSettings, open_store
from prefix_store.db import Database
from prefix_store.engines import Waits, open_engine
from prefix_store.errors import NotMigrated, StoreError, Unavailable, UnsafeRole
from prefix_store.reach import NOWHERE
from prefix_store.scope import Admin
from prefix_store.tables import owners

PASSWORD = "kingfisher-7731"
on_postgresql = pytest.mark.parametrize("database_url", DATABASES[1:], indirect=True)


def superuser(settings):
    """The same database as the server's superuser."""
    place = make_url(POSTGRES).set(database=make_url(settings.url).database)
    return place.render_as_string(hide_password=False)


def alone(settings, url):
    return settings.model_copy(
        update={"database_url": url, "system_database_url": None, "owner_database_url": None}
    )


@on_postgresql
def test_the_server_vacuums_after_every_deletion_where_no_process_may(settings, caplog):
    """Two roles own no table, so dead rows of what was erased wait for autovacuum, which must not wait for many."""
    store = open_store(settings)
    store.migrate()
    with everything(store) as connection:
        asked = text(
            "SELECT relname, reloptions FROM pg_class WHERE relkind = 'r' AND relrowsecurity"
            " AND relnamespace = current_schema()::regnamespace"
        )
        found = {row.relname: row.reloptions for row in connection.execute(asked)}
        works = connection.execute(text("SHOW autovacuum")).scalar_one() == "on"
    assert set(found) >= {"owners", "datasets", "versions", "litter", "audit"}
    for options in found.values():
        assert {"autovacuum_vacuum_threshold=0", "autovacuum_vacuum_scale_factor=0"} <= set(options)
    store.check_migrated()
    assert ("autovacuum is off" in caplog.text) != works
    store.close()


@on_postgresql
@pytest.mark.parametrize("role", ["owner", "superuser"])
def test_one_role_alone_does_everything(settings, role):
    url = settings.owner_url if role == "owner" else superuser(settings)
    store = open_store(alone(settings, url))
    store.prepare()
    tenant, other = (store.keys.verify(store.tenants.create(Admin(), name)[1]) for name in ("acme", "globex"))
    for scope in (tenant, other):
        publish(store, scope, store.owners.create_user(scope, "alice"), "voice")
    at, process = store.feed.position(), store.feed.join("service")
    queue(store, tenant, store.owners.get(tenant, "alice"), "voice")
    claim = store.jobs.claim("w")
    store.jobs.save_checkpoint(claim, 1, b"state")
    assert complete(store, claim).full_name == "alice:voice@2"
    erasure = store.erasure.begin(tenant, "alice")
    assert [change.kind for change in store.feed.read(at)] == ["version_live", "owner_erased"]
    store.feed.beat(process, erasure.seq)
    assert store.feed.acked(erasure.seq)
    assert store.erasure.resume() == 0
    assert store.erasure.get(tenant, erasure.id).state == "done"
    assert {place.tenant_id for place in files_on_disk(store)} == {other.tenant_id}
    assert store.janitor.sweep(grace_seconds=-1) == 0
    assert store.jobs.counts() == {"succeeded": 1}
    assert store.audit.verify() == len(store.audit.list())
    if role == "owner":  # held to the policies like anybody
        with store._core.database.read(tenant.reach) as connection:
            seen = connection.execute(select(owners.c.tenant_id)).scalars().all()
        assert set(seen) == {tenant.tenant_id}
    store.close()


@on_postgresql
def test_with_two_roles_a_process_never_migrates_by_itself(settings):
    of_a_process = settings.model_copy(update={"owner_database_url": None})
    with pytest.raises((NotMigrated, Unavailable)):  # the roles are not there yet
        open_store(of_a_process)
    assert not (settings.data_dir / "secrets").exists()  # nobody could say whether they may be made
    open_store(settings).migrate()
    store = open_store(of_a_process)
    store.prepare()
    with pytest.raises(NotMigrated, match=r"may not migrate: .*owner's URL"):
        store.migrate()
    with pytest.raises(StoreError, match="PREFIX_OWNER_DATABASE_URL"):
        store.audit.verify()
    store.close()


@on_postgresql
def test_a_role_that_the_policies_do_not_bind_is_refused(settings, store):
    store.check_migrated()
    for update in (
        {"database_url": superuser(settings)},
        {"system_database_url": superuser(settings)},
        {"database_url": settings.owner_url},
    ):
        unsafe = open_store(settings.model_copy(update=update))
        with pytest.raises(UnsafeRole, match="row-level security does not bind"):
            unsafe.prepare()
        unsafe.close()
    unsafe = open_store(settings.model_copy(update={"database_url": superuser(settings)}))
    with pytest.raises(UnsafeRole, match="superuser"):
        unsafe.migrate()
    unsafe.close()
    lonely = open_store(alone(settings, settings.url))
    with pytest.raises(UnsafeRole, match="give PREFIX_SYSTEM_DATABASE_URL too"):
        lonely.prepare()
    lonely.close()
    with everything(store) as connection:
        roles = [make_url(url).username for url in (settings.system_url, settings.url)]
        connection.execute(text(f"GRANT {roles[0]} TO {roles[1]}"))
    with pytest.raises(UnsafeRole, match="a member of one"):
        store.prepare()


@on_postgresql
def test_a_role_that_is_made_has_its_urls_password_and_no_more_than_a_login(settings, store):
    for url in map(make_url, (settings.url, settings.system_url)):
        with everything(store) as connection:
            sealed, *more = connection.execute(
                text(
                    "SELECT rolpassword, rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
                    " FROM pg_authid WHERE rolname = :name AND rolcanlogin"
                ).bindparams(name=url.username)
            ).one()
        assert more == [False] * 5
        _, spec, keys = sealed.removeprefix("SCRAM-SHA-256").split("$")  # RFC 5803
        rounds, salt = spec.split(":")
        salted = hashlib.pbkdf2_hmac("sha256", url.password.encode(), base64.b64decode(salt), int(rounds))
        stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
        assert base64.b64decode(keys.split(":")[0]) == stored


@on_postgresql
def test_roles_may_be_made_beforehand_and_may_change_their_names(settings, store):
    scope = store.keys.verify(store.tenants.create(Admin(), "acme")[1])
    urls = {}
    with everything(store) as connection:
        for kind in ("database_url", "system_database_url"):
            url = make_url(getattr(settings, kind))
            name = f"{url.username}_2"
            connection.execute(text(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'"))
            urls[kind] = url.set(username=name, password=PASSWORD).render_as_string(hide_password=False)
    renamed = open_store(settings.model_copy(update=urls))
    try:
        renamed.migrate()
        renamed.prepare()
        assert publish(renamed, scope, renamed.owners.create_user(scope, "alice"), "voice").promoted
    finally:
        renamed.close()
        with everything(store) as connection:
            for url in urls.values():
                name = make_url(url).username
                connection.execute(text(f"DROP OWNED BY {name}; DROP ROLE {name}"))


def test_settings_that_do_not_fit_are_refused_without_a_password_in_the_message():
    base = f"postgresql://app:{PASSWORD}@127.0.0.1/store"
    for wrong in (
        {"database_url": base, "system_database_url": base},
        {"database_url": base, "system_database_url": f"postgresql://system:{PASSWORD}@127.0.0.1/other"},
        {"database_url": None, "system_database_url": base},
        {"database_url": base, "system_database_url": "postgresql://127.0.0.1/store"},
        {"database_url": base, "system_database_url": f"nonsense {PASSWORD}"},
        {
            "database_url": base,
            "system_database_url": f"postgresql://system:{PASSWORD}@127.0.0.1/store",
            "migrate": True,
        },
    ):
        names = [
            f"PREFIX_{name.upper()}" for name in ("database_url", "system_database_url", "owner_database_url")
        ]
        with environment({}, names), pytest.raises(ValidationError) as caught:
            StoreSettings(**wrong)
        assert PASSWORD not in str(caught.value)
        assert caught.value.errors()[0]["loc"] in {("system_database_url",), ("migrate",)}
    assert PASSWORD not in repr(StoreSettings(database_url=base))


COUNT = "UPDATE counters SET value = value WHERE name = 'audit'"


@pytest.fixture
def opened(settings, store):
    """Makes connections of the application that wait for nothing long but what is named."""
    made = []

    def database(**longer):
        waits = {"pool": 0.2, "lock": 0.2, "statement": 0.5, "idle": 60.0, "silence": 7.0} | longer
        made.append(Database(open_engine(settings.url, Waits(pool_size=2, pool_overflow=0, **waits))))
        return made[-1]

    yield database
    for each in made:
        each.close()


@on_postgresql
def test_nothing_waits_for_postgresql_for_ever(opened):
    database = opened()
    with database.read(NOWHERE) as connection:
        told = connection.connection.driver_connection.info.get_parameters()
        assert {
            "connect_timeout": "5",
            "tcp_user_timeout": "7000",
            "keepalives_count": "3",
        }.items() <= told.items()
        assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == "on"
        with database.read(NOWHERE), pytest.raises(Unavailable), database.read(NOWHERE):
            pass  # the pool is empty
    with pytest.raises(Unavailable), database.read(NOWHERE) as connection:
        connection.exec_driver_sql("SELECT pg_sleep(60)")
    with database.write(NOWHERE) as holder:
        holder.exec_driver_sql(COUNT)
        with pytest.raises(Unavailable), database.write(NOWHERE) as connection:
            connection.exec_driver_sql(COUNT)


@on_postgresql
def test_a_process_that_lies_still_in_its_transaction_holds_its_locks_for_a_while_only(opened):
    stopped = opened(idle=0.3).write(NOWHERE)
    stopped.__enter__().exec_driver_sql(COUNT)
    with opened(lock=60.0, statement=60.0).write(NOWHERE) as connection:
        connection.exec_driver_sql(COUNT)  # the server has ended the other's
    with pytest.raises(Unavailable):
        stopped.__exit__(None, None, None)


def test_a_server_that_says_nothing_is_given_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        database = Database(open_engine(f"postgresql+psycopg://x@127.0.0.1:{port}/x", Waits(connect=2.0)))
        with pytest.raises(Unavailable), database.read(NOWHERE):
            pass
        database.close()


@on_postgresql
def test_what_the_url_itself_says_stays(settings, store):
    url = f"{settings.url}?connect_timeout=3&options=-c%20search_path%3Dpg_catalog"
    database = Database(open_engine(url, Waits()))
    with database.read(NOWHERE) as connection:
        assert connection.connection.driver_connection.info.get_parameters()["connect_timeout"] == "3"
        assert connection.exec_driver_sql("SHOW search_path").scalar() == "pg_catalog"
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar() == "4s"
    database.close()
