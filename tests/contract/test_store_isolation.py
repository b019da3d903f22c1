"""Foreign and absent look the same, in every call that takes a scope."""

import pytest
from database_making import everything
from sqlalchemy import event
from store_making import publish, queue, trained, upload, user_scope

from prefix_store.errors import Conflict, NotFound
from prefix_store.scope import Owner, Scope

ABSENT = {"user": "nobody", "file": "file-none", "job": "ftjob-none", "key": "none", "era": "era-none"}


@pytest.fixture
def owned(store, tenant):
    """Things of alice, by kind, and her key's scope."""
    alice = store.owners.create_user(tenant, "alice")
    file = upload(store, tenant, alice)
    publish(store, tenant, alice, "voice", files=[file.id])
    publish(store, tenant, alice, "voice", files=[file.id], promote=False)
    job = queue(store, tenant, alice, "voice", [file.id])
    key = store.keys.issue(tenant, "alice")
    return {"user": alice, "file": file.id, "job": job.id, "key": key.id}


CALLS = {
    "owners.get": lambda s, c, o: s.owners.get(c, o["user"].label),
    "owners.view": lambda s, c, o: s.owners.view(c, o["user"].label),
    "datasets.get": lambda s, c, o: s.datasets.get(c, o["file"]),
    "datasets.read": lambda s, c, o: s.datasets.read(c, o["file"]),
    "datasets.list": lambda s, c, o: s.datasets.list(c, after=o["file"]),
    "datasets.delete": lambda s, c, o: s.datasets.delete(c, o["file"]),
    "datasets.delete with versions": lambda s, c, o: s.datasets.delete(c, o["file"], versions=True),
    "datasets.writer": lambda s, c, o: s.datasets.writer(c, o["user"], "x"),
    "jobs.get": lambda s, c, o: s.jobs.get(c, o["job"]),
    "jobs.list": lambda s, c, o: s.jobs.list(c, after=o["job"]),
    "jobs.cancel": lambda s, c, o: s.jobs.cancel(c, o["job"]),
    "jobs.events": lambda s, c, o: s.jobs.events(c, o["job"]),
    "jobs.create": lambda s, c, o: queue(s, c, o["user"], "voice", [o["file"]]),
    "registry.resolve": lambda s, c, o: s.registry.resolve(c, f"{o['user'].label}:voice"),
    "registry.resolve a version": lambda s, c, o: s.registry.resolve(c, f"{o['user'].label}:voice@2"),
    "registry.get": lambda s, c, o: s.registry.get(c, f"{o['user'].label}:voice"),
    "registry.versions": lambda s, c, o: s.registry.versions(c, f"{o['user'].label}:voice"),
    "registry.promote": lambda s, c, o: s.registry.promote(c, f"{o['user'].label}:voice", 2),
    "registry.rollback": lambda s, c, o: s.registry.rollback(c, f"{o['user'].label}:voice"),
    "registry.delete_version": lambda s, c, o: s.registry.delete_version(c, f"{o['user'].label}:voice", 2),
    "registry.delete_version live": lambda s, c, o: s.registry.delete_version(
        c, f"{o['user'].label}:voice", 1
    ),
    "registry.delete_prefix": lambda s, c, o: s.registry.delete_prefix(c, f"{o['user'].label}:voice"),
    "erasure.begin": lambda s, c, o: s.erasure.begin(c, o["user"].label),
    "usage.report": lambda s, c, o: s.usage.report(c, user=o["user"].label),
    "keys.revoke": lambda s, c, o: s.keys.revoke(c, o["key"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_foreign_and_absent_answer_the_same(store, tenant, other_tenant, owned, call):
    store.owners.create_user(tenant, "bob")
    before = _all_of(store, tenant)
    for scope in (user_scope(store, tenant, "bob"), other_tenant):
        said = []
        nobody = Owner(scope.tenant_id, "own-none", "user", "nobody")
        for things in (owned, {**ABSENT, "user": nobody}):
            statements = []
            listen = _counting(store, statements)
            with pytest.raises(NotFound) as caught:
                CALLS[call](store, scope, things)
            event.remove(store._core.database.engine, "before_cursor_execute", listen)
            text = str(caught.value)
            for kind, name in things.items():
                text = text.replace(name if isinstance(name, str) else name.label, f"<{kind}>")
            said.append((type(caught.value), text, statements))
        assert said[0] == said[1]
    assert _all_of(store, tenant) == before


def _counting(store, statements):
    def listen(connection, cursor, statement, *_):
        statements.append(statement)

    event.listen(store._core.database.engine, "before_cursor_execute", listen)
    return listen


def _all_of(store, scope):
    return (
        store.owners.list_users(scope),
        store.datasets.list(scope),
        store.jobs.list(scope),
        store.registry.list(scope),
    )


def test_lists_hold_only_what_the_scope_reaches(store, tenant, other_tenant, owned):
    store.owners.create_user(tenant, "bob")
    bob = user_scope(store, tenant, "bob")
    assert [view.owner.name for view in store.owners.list_users(bob)] == ["bob"]
    assert [key.user for key in store.keys.list(bob)] == ["bob"]
    for scope in (bob, other_tenant):
        assert store.datasets.list(scope) == []
        assert store.jobs.list(scope) == []
        assert store.registry.list(scope) == []
        assert store.usage.report(scope) == []


def test_a_users_key_generates_with_a_task_but_neither_changes_it_nor_sees_behind_it(store, tenant):
    store.owners.create_user(tenant, "bob")
    bob = user_scope(store, tenant, "bob")
    task = store.owners.ensure_task(tenant, "e2e")
    file = upload(store, tenant, task)
    publish(store, tenant, task, "e2e", files=[file.id])
    publish(store, tenant, task, "e2e", files=[file.id], promote=False)
    job = queue(store, tenant, task, "e2e", [file.id])
    assert store.registry.resolve(bob, "task:e2e").number == 1
    assert store.registry.read(store.registry.resolve(bob, "task:e2e@2"))
    assert [view.name for view in store.registry.list(bob)] == ["task:e2e"]
    for call in (
        lambda: store.registry.promote(bob, "task:e2e", 2),
        lambda: store.registry.rollback(bob, "task:e2e"),
        lambda: store.registry.delete_version(bob, "task:e2e", 2),
        lambda: store.registry.delete_prefix(bob, "task:e2e"),
        lambda: store.datasets.get(bob, file.id),
        lambda: store.datasets.writer(bob, task, "x"),
        lambda: store.jobs.get(bob, job.id),
        lambda: queue(store, bob, task, "e2e", [file.id]),
        lambda: store.erasure.begin(bob, "task:e2e"),
        lambda: store.owners.get(bob, "task:e2e"),
    ):
        with pytest.raises(NotFound):
            call()
    for call in (lambda: store.owners.ensure_task(bob, "new"), lambda: store.owners.create_user(bob, "new")):
        with pytest.raises(Conflict):
            call()
    with pytest.raises(Conflict):
        store.keys.issue(bob, "bob")


def test_a_scope_of_an_erased_user_reaches_nothing_of_a_later_one_of_that_name(store, tenant, owned):
    old = user_scope(store, tenant, "alice")
    store.erasure.begin(tenant, "alice")
    alice = store.owners.create_user(tenant, "alice")
    publish(store, tenant, alice, "voice")
    assert isinstance(old, Scope)
    for call in (
        lambda: store.registry.resolve(old, "alice:voice"),
        lambda: store.datasets.writer(old, owned["user"], "x"),
        lambda: store.datasets.writer(tenant, owned["user"], "x"),
        lambda: store.owners.get(old, "alice"),
    ):
        with pytest.raises(NotFound):
            call()
    assert store.registry.list(old) == []


def test_resolving_is_one_indexed_read(store, tenant, owned):
    statements = []
    listen = _counting(store, statements)
    store.registry.resolve(tenant, "alice:voice")
    event.remove(store._core.database.engine, "before_cursor_execute", listen)
    assert len(statements) == 2  # with what opens the transaction: BEGIN, or what it reaches
    if store._core.database.is_sqlite:
        bound = (tenant.tenant_id, "user", "alice", "voice")
        with everything(store) as connection:
            plan = connection.exec_driver_sql("EXPLAIN QUERY PLAN " + statements[-1], bound).all()
        assert plan
        assert not [row for row in plan if row[3].startswith("SCAN")], plan
        assert any("one_live_owner" in row[3] for row in plan), plan


def test_a_claim_reads_the_files_of_its_own_job_only(store, tenant):
    alice, bob = store.owners.create_user(tenant, "alice"), store.owners.create_user(tenant, "bob")
    mine, held_out, other = (
        upload(store, tenant, alice),
        upload(store, tenant, alice),
        upload(store, tenant, bob),
    )
    unused = upload(store, tenant, alice)
    queue(store, tenant, alice, "voice", [mine.id], validation_file=held_out.id)
    claim = store.jobs.claim("w")
    assert store.datasets.read(claim, mine.id) == store.datasets.read(tenant, mine.id)
    assert store.datasets.read(claim, held_out.id)
    for file in (other, unused):
        with pytest.raises(NotFound):
            store.datasets.read(claim, file.id)
    assert store.jobs.live(claim) is None
    assert store.jobs.complete(claim, trained(), promote=True).promoted
