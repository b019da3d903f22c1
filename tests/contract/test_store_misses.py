"""What cannot be removed holds up nothing else: other deletions, other owners, other tenants, the rest of a sweep."""

import contextlib

import pytest
from database_making import everything
from production_making import everything_kept
from store_making import files_on_disk, publish, upload

from prefix_store import tables
from prefix_store.crypto import Place
from prefix_store.errors import Unavailable
from prefix_store.litter import MOST_MISSES
from prefix_store.scope import Admin


@pytest.fixture
def held(store, monkeypatch):
    """Object ids of files that somebody holds: they cannot be removed."""
    files, ids = store.blobs.files, set()
    delete = files.delete

    def refused(place):
        if place.object_id in ids:
            raise Unavailable("AccessDenied")
        delete(place)

    monkeypatch.setattr(files, "delete", refused)
    return ids


def noted(store):
    with everything(store) as connection:
        return {row.object_id for row in connection.execute(tables.litter.select())}


def test_a_file_that_somebody_holds_stops_no_other_deletion_erasure_or_sweep(
    store, tenant, other_tenant, alice, held
):
    bob, zoe = store.owners.create_user(tenant, "bob"), store.owners.create_user(other_tenant, "zoe")
    mine, others = upload(store, tenant, alice), [upload(store, tenant, alice) for _ in range(2)]
    upload(store, tenant, bob)
    kept = upload(store, other_tenant, zoe)
    held.add(mine.id)
    store.datasets.delete(tenant, mine.id)
    for other in others:
        store.datasets.delete(tenant, other.id)
    assert files_on_disk(store) == {mine.place, kept.place} | {
        place for place in files_on_disk(store) if place.owner_id == bob.owner_id
    }
    assert noted(store) == {mine.id}
    with pytest.raises(Unavailable):
        store.erasure.clear(tenant)
    erasure = store.erasure.begin(tenant, "bob")
    assert store.erasure.purge(erasure.id).state == "done"
    assert files_on_disk(store) == {mine.place, kept.place}
    for scope, owner in ((tenant, alice), (other_tenant, zoe)):
        store.blobs.put(Place(scope.tenant_id, owner.owner_id, "file-orphan"), b"nobody's")
    with pytest.raises(Unavailable):
        store.janitor.sweep(grace_seconds=-1)
    assert files_on_disk(store) == {mine.place, kept.place}
    assert noted(store) == {mine.id}
    held.clear()
    assert store.janitor.sweep(grace_seconds=-1) == 1
    assert files_on_disk(store) == {kept.place}
    assert noted(store) == set()


def test_an_erasure_waits_for_a_held_version_that_may_have_learned_from_the_user(store, tenant, alice, held):
    task = store.owners.ensure_task(tenant, "e2e")
    publish(store, tenant, task, "e2e", files=[upload(store, tenant, alice).id])
    held.add(store.registry.resolve(tenant, "task:e2e").version_id)
    erasure = store.erasure.begin(tenant, "alice")
    with pytest.raises(Unavailable):
        store.erasure.purge(erasure.id)
    assert {place.object_id for place in files_on_disk(store)} == held  # hers are gone meanwhile
    held.clear()
    assert store.erasure.purge(erasure.id).state == "done"
    assert everything_kept(store) == []


def test_a_tenants_error_in_the_database_ends_no_sweep_of_the_others(
    store, tenant, other_tenant, alice, monkeypatch
):
    zoe = store.owners.create_user(other_tenant, "zoe")
    trim, ids = store.janitor._sweep_tenant, sorted([tenant.tenant_id, other_tenant.tenant_id])
    for scope, owner in ((tenant, alice), (other_tenant, zoe)):
        store.blobs.put(Place(scope.tenant_id, owner.owner_id, "file-orphan"), b"nobody's")
    told = []

    def locked(tenant_id, *rest):
        told.append(tenant_id)
        if len(told) == 1:
            raise Unavailable("the database does not answer")
        return trim(tenant_id, *rest)

    monkeypatch.setattr(store.janitor, "_sweep_tenant", locked)
    monkeypatch.setattr(store.feed, "trim", lambda seconds: told.append("feed"))
    with pytest.raises(Unavailable, match="database"):
        store.janitor.sweep(grace_seconds=-1)
    assert sorted(told[:2]) == ids
    assert told[2:] == ["feed"]
    assert {place.tenant_id for place in files_on_disk(store)} == {told[0]}


def test_files_that_cannot_be_listed_end_no_sweep_of_the_rest(store, tenant, alice, held, monkeypatch):
    left, told, places = upload(store, tenant, alice), [], store.blobs.places
    held.add(left.id)
    store.datasets.delete(tenant, left.id)
    held.clear()
    kept, orphan = upload(store, tenant, alice), Place(tenant.tenant_id, alice.owner_id, "file-orphan")
    store.blobs.put(orphan, b"nobody's")

    def refused():
        yield orphan, 7200.0
        raise Unavailable("AccessDenied")

    monkeypatch.setattr(store.blobs, "places", refused)
    monkeypatch.setattr(store.blobs, "sweep_drafts", lambda seconds: told.append("drafts"))
    monkeypatch.setattr(store.feed, "trim", lambda seconds: told.append("feed"))
    monkeypatch.setattr("prefix_store.janitor.trim", lambda _, tenant_id, __: told.append(tenant_id))
    with pytest.raises(Unavailable, match="AccessDenied"):
        store.janitor.sweep()
    assert told == [tenant.tenant_id, "drafts", "feed"]
    assert noted(store) == set()
    assert {place for place, _ in places()} == {kept.place}


def test_while_nothing_answers_the_rest_is_not_asked_for(store, tenant, alice, held, monkeypatch):
    files = [upload(store, tenant, alice) for _ in range(3)]
    held |= {file.id for file in files}
    for file in files:
        store.datasets.delete(tenant, file.id)
    delete, asked = store.blobs.files.delete, []
    monkeypatch.setattr(store.blobs.files, "away", lambda: True)
    monkeypatch.setattr(store.blobs.files, "delete", lambda place: asked.append(place) or delete(place))
    for act in (lambda: store.erasure.clear(tenant), lambda: store.janitor.sweep(grace_seconds=-1)):
        asked.clear()
        with pytest.raises(Unavailable):
            act()
        assert len(asked) == 1


def test_a_tenants_erasure_keeps_what_it_has_done_whichever_request_fails(store, tenant, monkeypatch):
    owners = [store.owners.create_user(tenant, f"u{at}").owner_id for at in range(60)]
    files, asked, failed = store.blobs.files, [], []
    delete_owner = files.delete_owner

    def one_in_fifty_fails(tenant_id, owner_id):
        asked.append(owner_id)
        if len(asked) % 50 == 0:
            failed.append(owner_id)
            raise Unavailable("one request in fifty")
        delete_owner(tenant_id, owner_id)

    monkeypatch.setattr(files, "delete_owner", one_in_fifty_fails)
    erasure = store.tenants.erase(Admin(), tenant.tenant_id)
    with pytest.raises(Unavailable):
        store.erasure.purge(erasure.id)
    assert sorted(asked) == sorted(owners)
    assert store.erasure.purge(erasure.id).state == "done"
    assert asked[60:] == failed  # nobody else is asked again


def test_an_erasure_of_many_lets_others_have_their_turn_and_goes_on_at_once(
    store, tenant, other_tenant, monkeypatch
):
    monkeypatch.setattr("prefix_store.unfinished.YOUNG_SECONDS", 0.0)
    monkeypatch.setattr("prefix_store.unfinished.TURN_SECONDS", 0.0)
    for at in range(3):
        store.owners.create_user(tenant, f"u{at}")
    store.owners.create_user(other_tenant, "zoe")
    many = store.tenants.erase(Admin(), tenant.tenant_id)
    one = store.erasure.begin(other_tenant, "zoe")
    store.erasure.go_on()
    assert store.erasure.get(Admin(), one.id).state == "done"
    assert store.erasure.pending() == [many.id]
    for _ in range(2):
        store.erasure.go_on()
    assert store.erasure.pending() == []


def test_many_files_that_somebody_holds_cost_a_few_of_them_at_a_time(store, tenant, alice, held, monkeypatch):
    bob = store.owners.create_user(tenant, "bob")
    for _ in range(2 * MOST_MISSES):
        file = upload(store, tenant, alice)
        held.add(file.id)
        store.datasets.delete(tenant, file.id)
    upload(store, tenant, bob)
    tried, delete = [], store.blobs.files.delete
    monkeypatch.setattr(store.blobs.files, "delete", lambda place: (tried.append(place), delete(place)))
    with pytest.raises(Unavailable):
        store.erasure.clear(tenant)
    assert len(tried) == MOST_MISSES
    assert store.erasure.purge(store.erasure.begin(tenant, "bob").id).state == "done"
    held.clear()
    store.erasure.clear(tenant)
    assert noted(store) == set()


def test_owners_whose_files_cannot_be_removed_do_not_keep_the_turns_from_the_others(
    store, tenant, monkeypatch
):
    owners = [store.owners.create_user(tenant, f"user-{n}") for n in range(4)]
    files = [upload(store, tenant, owner) for owner in owners]
    stuck, delete_owner = {owners[0].owner_id, owners[1].owner_id}, store.blobs.files.delete_owner

    def refused(tenant_id, owner_id):
        if owner_id in stuck:
            raise Unavailable("AccessDenied")
        delete_owner(tenant_id, owner_id)

    monkeypatch.setattr(store.blobs.files, "delete_owner", refused)
    erasure = store.erasure.begin_tenant(Admin(), tenant.tenant_id)
    row = store.erasure._row(erasure.id)
    for _ in range(60):  # of one owner each; that none of the two has one is unlikelier than a broken disk
        with contextlib.suppress(Unavailable):
            store.erasure._removed(row, 0.0)
    assert files_on_disk(store) == {file.place for file in files[:2]}
