"""The third net on PostgreSQL: what a forgotten condition cannot reach, and what the system role cannot read."""

import pytest
from database_making import DATABASES, everything
from psycopg.errors import InsufficientPrivilege
from sqlalchemy import Engine, create_engine, func, insert, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ProgrammingError
from store_making import best, publish, queue, upload, user_scope

from prefix_store import StoreSettings
from prefix_store.crypto import Place
from prefix_store.db import SystemDatabase
from prefix_store.errors import NotFound
from prefix_store.intents import announce
from prefix_store.litter import note
from prefix_store.reach import NOWHERE, OPERATOR, Reach
from prefix_store.scope import Admin
from prefix_store.tables import metadata, owners, tenants

NOBODYS = {"counters", "processes", "compatibility", "installation"}  # of no tenant
OF_TENANTS = set(metadata.tables) - NOBODYS

pytestmark = pytest.mark.parametrize("database_url", DATABASES[1:], indirect=True)


@pytest.fixture
def settings(tmp_path, database_url):
    return StoreSettings(data_dir=tmp_path, database_url=database_url, lease_seconds=3600.0)


@pytest.fixture
def filled(store):
    """Two tenants with rows of alice, bob and a task in every table; ids by name."""
    ids = {}
    for name in ("acme", "globex"):
        made, key = store.tenants.create(Admin(), name)
        scope = store.keys.verify(key)
        alice, bob = (store.owners.create_user(scope, user) for user in ("alice", "bob"))
        task = store.owners.ensure_task(scope, "e2e")
        for owner in (alice, bob):
            file = upload(store, scope, owner, idempotency_key="k")
            publish(store, scope, owner, "voice", files=[file.id])
            store.usage.record(scope, owner, 1, 1)
            queue(store, scope, owner, "voice", [file.id])
            store.jobs.save_checkpoint(store.jobs.claim("w"), 1, b"state", best())
            store.keys.issue(scope, owner.name)
        publish(store, scope, task, "e2e", files=[file.id])
        store.owners.create_user(scope, "carol")
        store.erasure.begin(scope, "carol")
        for owner in (alice, bob):
            with store._core.database.write(owner.reach) as connection:
                note(connection, [Place(owner.tenant_id, owner.owner_id, "file-gone")])
            coming = Place(owner.tenant_id, owner.owner_id, "file-coming")
            announce(store._core, coming, lambda connection: None)
        ids[name] = {"scope": scope, "tenant": made.id, "alice": alice, "bob": bob, "task": task}
    with everything(store) as connection:
        empty = {
            name for name, table in metadata.tables.items() if not connection.execute(select(table)).first()
        }
    assert empty <= {"processes"}
    return ids


@pytest.fixture
def as_role(settings):
    """A connection of one of the three roles that has set nothing; what it does is rolled back."""
    engines = []

    def connect(role):
        urls = {"application": settings.url, "system": settings.system_url, "owner": settings.owner_url}
        engines.append(create_engine(urls[role]))
        return engines[-1].connect()

    yield connect
    for engine in engines:
        engine.dispose()


def refused(connection, statement):
    """Whether the database says that the role may not."""
    try:
        with connection.begin_nested():
            connection.execute(statement)
    except ProgrammingError as error:
        if isinstance(error.orig, InsufficientPrivilege):
            return True
        raise
    return False


def test_every_table_with_a_tenants_rows_is_under_forced_policies_on_tenant_and_owner(store):
    with everything(store) as connection:
        forced = connection.execute(
            text("SELECT relname FROM pg_class WHERE relrowsecurity AND relforcerowsecurity")
        )
        assert set(forced.scalars()) == OF_TENANTS
        found = connection.execute(
            text(
                "SELECT tablename, coalesce(qual, '') || coalesce(with_check, '') AS rule, roles FROM pg_policies"
            )
        ).all()
        for name in OF_TENANTS:
            everybodys = [row.rule for row in found if row.tablename == name and row.roles == ["public"]]
            assert any("prefixserve.tenant" in rule for rule in everybodys), name
            if "owner_id" in metadata.tables[name].c:
                assert any("prefixserve.owner" in rule for rule in everybodys), name
            for rule in everybodys:
                assert "prefixserve." in rule, (name, rule)
    with_tenant = {name for name, table in metadata.tables.items() if "tenant_id" in table.c}
    assert with_tenant | {"tenants"} == OF_TENANTS


@pytest.mark.parametrize("role", ["application", "owner"])
def test_a_transaction_that_says_no_tenant_sees_nothing_and_writes_nothing(store, filled, as_role, role):
    with everything(store) as connection:
        rows = {name: connection.execute(select(metadata.tables[name])).first() for name in OF_TENANTS}
    with as_role(role) as connection:
        for name in sorted(OF_TENANTS):
            table = metadata.tables[name]
            counted = select(func.count()).select_from(table)
            assert refused(connection, counted) or connection.execute(counted).scalar() == 0, name
            for change in (f"DELETE FROM {name}", f"UPDATE {name} SET {table.c.keys()[0]} = 'x'"):
                if name in {"changes", "audit", "job_events"} and change.startswith("UPDATE"):
                    continue  # their first column is a number
                touched = text(change)
                assert refused(connection, touched) or connection.execute(touched).rowcount == 0, change
            assert refused(connection, insert(table).values(**rows[name]._mapping)), name


def test_a_query_that_forgets_its_where_sees_one_tenant_alone(store, filled):
    acme = filled["acme"]["tenant"]
    with store._core.database.read(Reach(acme)) as connection:
        for name in sorted(OF_TENANTS - {"tenants", "changes", "audit"}):
            seen = connection.execute(select(metadata.tables[name].c.tenant_id)).scalars().all()
            assert seen, name
            assert set(seen) == {acme}, name
        assert connection.execute(select(tenants.c.id)).scalars().all() == [acme]
    with store._core.database.read(NOWHERE) as connection:
        assert connection.execute(select(owners.c.owner_id)).all() == []
    with store._core.database.read(OPERATOR) as connection:
        assert len(connection.execute(select(tenants.c.id)).all()) == 2
        assert connection.execute(select(owners.c.owner_id)).all() == []


def test_a_query_that_forgets_its_where_sees_one_owner_alone_and_of_tasks_only_what_may_be_called(
    store, filled
):
    alice, task = filled["acme"]["alice"], filled["acme"]["task"]
    with store._core.database.read(alice.reach) as connection:
        for name in sorted(OF_TENANTS - {"tenants", "changes", "audit", "erasures"}):
            seen = set(connection.execute(select(metadata.tables[name].c.owner_id)).scalars())
            shared = {task.owner_id} if name in {"owners", "prefixes", "versions"} else set()
            assert seen == {alice.owner_id} | shared, name


def test_a_change_that_forgets_its_where_changes_one_owner_alone(store, filled):
    alice, bob = filled["acme"]["alice"], filled["acme"]["bob"]
    with store._core.database.write(alice.reach) as connection:
        assert connection.exec_driver_sql("UPDATE prefixes SET name = 'taken'").rowcount == 1
        assert connection.exec_driver_sql("DELETE FROM idempotency").rowcount == 1
        moved = text("UPDATE litter SET owner_id = :other").bindparams(other=bob.owner_id)
        assert refused(connection, moved)  # a row cannot be given to another
        for tenant_id, owner_id in (
            (bob.tenant_id, bob.owner_id),
            (filled["globex"]["tenant"], alice.owner_id),
        ):
            row = {"tenant_id": tenant_id, "owner_id": owner_id, "object_id": "x"}
            assert refused(connection, insert(metadata.tables["litter"]).values(**row))
    for name in ("acme", "globex"):
        scope = filled[name]["scope"]
        assert store.registry.resolve(scope, "bob:voice").number == 1
        taken = "alice:taken" if name == "acme" else "alice:voice"
        assert store.registry.resolve(scope, taken).number == 1


def test_a_users_quota_counts_what_the_user_cannot_see(store, filled):
    """Bytes and open jobs are the tenant's: bob's are counted when alice's key asks, though she sees none."""
    acme = filled["acme"]
    alices = user_scope(store, acme["scope"], "alice")
    with everything(store) as connection:
        open_jobs = text(
            "UPDATE tenants SET max_jobs = 2, max_dataset_bytes = 60"
        )  # each has an open job and a file
        connection.execute(open_jobs)
    with pytest.raises(Exception, match="2 jobs are open, 2 may be"):
        queue(store, alices, acme["alice"], "style", [store.datasets.list(alices)[0].id])
    with pytest.raises(Exception, match="of 60 bytes"):
        upload(store, alices, acme["alice"])


def test_a_user_that_deletes_a_file_takes_what_a_task_learned_from_it(store, filled):
    acme = filled["acme"]
    bobs = user_scope(store, acme["scope"], "bob")
    (file,) = [dataset for dataset in store.datasets.list(bobs) if dataset.purpose == "fine-tune"]
    assert store.registry.resolve(bobs, "task:e2e").number == 1
    store.datasets.delete(bobs, file.id, versions=True)
    with pytest.raises(NotFound):
        store.registry.resolve(acme["scope"], "task:e2e")
    assert store.registry.resolve(filled["globex"]["scope"], "task:e2e").number == 1


READABLE = {
    "api_keys": "id tenant_id owner_id digest grants revoked_at last_used_day",
    "owners": "tenant_id owner_id name state",
    "tenants": "id state joint_training",
    "jobs": "tenant_id owner_id id seq prefix_id run_at status attempt crashes company worker lease_until started_at",
    "job_events": "seq",
    "erasures": "id state created_at",
    "litter": "tenant_id",
}
WHOLE = {"changes", "counters", "processes", "compatibility"}


def test_the_system_role_reads_what_finding_needs_and_no_word_of_anybody(store, filled, as_role):
    with as_role("system") as connection:
        for name, table in metadata.tables.items():
            may = set(READABLE.get(name, "").split()) | (set(table.c.keys()) if name in WHOLE else set())
            denied = {column.name for column in table.c if refused(connection, select(column))}
            assert denied == set(table.c.keys()) - may, name
        for change in (
            "INSERT INTO jobs DEFAULT VALUES",
            "DELETE FROM jobs",
            "UPDATE jobs SET spec = '{}'",
            "UPDATE api_keys SET digest = 'x'",
            "DELETE FROM api_keys",
            "UPDATE owners SET state = 'live'",
            "INSERT INTO changes DEFAULT VALUES",
            "DELETE FROM erasures",
            "DELETE FROM audit",
            "CREATE TABLE mine (id int)",
        ):
            assert refused(connection, text(change)), change


def test_the_applications_role_reads_no_secret_and_no_entry_of_the_log(store, filled, as_role):
    with as_role("application") as connection:
        connection.exec_driver_sql(
            "SELECT set_config('prefixserve.tenant', %s, true), set_config('prefixserve.owner', '*', true)",
            (filled["acme"]["tenant"],),
        )
        for query in (
            "SELECT digest FROM api_keys",
            "SELECT * FROM api_keys",
            "SELECT action FROM audit",
            "SELECT tenant_id FROM audit",
            "UPDATE audit SET action = 'x'",
            "DELETE FROM audit",
            "SELECT * FROM changes",
            "DELETE FROM owners",
            "UPDATE alembic_version SET version_num = 'x'",
            "ALTER TABLE jobs NO FORCE ROW LEVEL SECURITY",
        ):
            assert refused(connection, text(query)), query
        assert len(connection.exec_driver_sql("SELECT seq, mac FROM audit").all()) <= 1
    assert store.audit.verify() > 10


def _engines(start):
    """Engines and system databases that attributes lead to from here."""
    seen, todo, found = set(), [start], []
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, (Engine, SystemDatabase)):
            found.append(thing)
        if isinstance(thing, (dict, list, tuple, set, frozenset)):
            todo += thing.values() if isinstance(thing, dict) else thing
        elif type(thing).__module__.startswith("prefix_store"):
            todo += vars(thing).values() if hasattr(thing, "__dict__") else ()
            slots = getattr(type(thing), "__slots__", ())
            todo += [getattr(thing, name) for name in slots if hasattr(thing, name)]
    return found


def test_nothing_that_routes_hold_leads_to_the_system_role(store):
    system = make_url(store.settings.system_url).username
    whole = _engines(store)
    assert any(isinstance(found, SystemDatabase) for found in whole)
    assert any(isinstance(found, Engine) and found.url.username == system for found in whole)
    scoped = _engines(store.scoped)
    assert {type(found) for found in scoped} == {Engine}
    assert {found.url.username for found in scoped} == {make_url(store.settings.url).username}
