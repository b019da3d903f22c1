"""Feed, keys, usage, idempotency, datasets: the smaller promises."""

from dataclasses import replace

import pytest
from database_making import everything
from production_making import everything_kept
from sqlalchemy import event, update
from store_making import files_on_disk, publish, queue, rows, upload, user_scope

from prefix_store import open_store, version_rows
from prefix_store.errors import Conflict, FeedGap, Invalid, NotFound, Quota, TooLarge
from prefix_store.scope import GRANTS, USER_GRANTS, Admin
from prefix_store.tables import changes, processes
from prefix_store.tenants import TenantLimits


def test_a_process_without_a_fresh_beat_counts_as_dead_until_it_beats_again(store, settings, tenant, alice):
    patient = open_store(settings.model_copy(update={"process_dead_after": 120.0}))
    process = patient.feed.join("service")
    seq = store.erasure.begin(tenant, "alice").seq
    assert not patient.feed.acked(seq)
    with everything(store) as connection:
        connection.execute(update(processes).values(beat_at=processes.c.beat_at - 120.0))
    assert patient.feed.acked(seq)
    patient.feed.beat(process, seq - 1)
    assert not patient.feed.acked(seq)
    patient.feed.beat(process, seq)
    assert patient.feed.acked(seq)
    patient.close()


def test_every_removal_and_every_new_live_version_is_told_in_order(store, tenant, alice):
    at = store.feed.position()
    for promote in (True, True, False):
        publish(store, tenant, alice, "voice", promote=promote)
    ids = {
        version.number: version.resolved.version_id
        for version in store.registry.versions(tenant, "alice:voice")
    }
    store.registry.rollback(tenant, "alice:voice")
    last = store.registry.delete_version(tenant, "alice:voice", 3)
    told = [(change.kind, change.version_id) for change in store.feed.read(at)]
    assert told == [
        ("version_live", ids[1]),
        ("version_live", ids[2]),
        ("version_live", ids[1]),
        ("version_gone", ids[3]),
    ]
    assert last.seq == store.feed.position() == at + 4


def test_a_process_that_slept_past_what_is_kept_hears_so(store, tenant, alice):
    at = store.feed.position()
    publish(store, tenant, alice, "voice")
    publish(store, tenant, alice, "voice")
    process = store.feed.join("service")
    store.feed.beat(process, at + 1)
    store.feed.trim(-1000)  # everything is older than that; the process itself counts as long dead
    with pytest.raises(FeedGap):
        store.feed.read(at)
    assert store.feed.read(at + 2) == []


def test_a_process_that_has_seen_more_than_the_database_has_hears_so(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    last = store.feed.position()
    assert store.feed.read(last) == []
    with pytest.raises(FeedGap):  # as after a failover to a standby that lacks the last change
        store.feed.read(last + 1)


def test_a_database_that_went_back_and_has_other_changes_by_now_is_noticed(store, tenant, alice):
    publish(store, tenant, alice, "voice")
    last = store.feed.position()
    (seen,) = store.feed.read(last - 1)
    publish(store, tenant, alice, "voice")
    assert [change.seq for change in store.feed.read(last, seen)] == [last + 1]
    with pytest.raises(FeedGap):
        store.feed.read(last, replace(seen, version_id="another"))
    store.feed.trim(-1000)
    publish(store, tenant, alice, "voice")
    # The change that it has seen is forgotten, which is no fault.
    assert [change.seq for change in store.feed.read(last + 1, seen)] == [last + 2]


def test_trimming_keeps_what_a_live_process_has_not_seen(store, tenant, alice):
    at = store.feed.position()
    publish(store, tenant, alice, "voice")
    publish(store, tenant, alice, "voice")
    with everything(store) as connection:
        connection.execute(update(changes).values(at=changes.c.at - 1000))
    store.feed.beat(store.feed.join("service"), at + 1)
    store.feed.trim(100)
    assert [change.seq for change in store.feed.read(at + 1)] == [at + 2]


def test_prefixes_come_page_by_page_and_no_page_reads_more_than_its_own(
    store, tenant, other_tenant, alice, monkeypatch
):
    bob = store.owners.create_user(tenant, "bob")
    tasks = [store.owners.ensure_task(tenant, name) for name in ("e2e", "a")]
    for owner, name in (
        (alice, "c"),
        (alice, "a"),
        (alice, "c"),
        (bob, "b"),
        (tasks[0], "e2e"),
        (tasks[1], "a"),
    ):
        publish(store, tenant, owner, name)
    publish(store, tenant, alice, "b", promote=False)
    publish(store, other_tenant, store.owners.create_user(other_tenant, "ann"), "a")
    queue(store, tenant, alice, "d")
    its_own = user_scope(store, tenant, "alice")
    every = ["alice:a", "alice:b", "alice:c", "bob:b", "task:a", "task:e2e"]
    for scope, names in ((tenant, every), (its_own, [name for name in every if name != "bob:b"])):
        whole = store.registry.list(scope)
        assert [view.name for view in whole] == names
        assert [version.number for version in whole[2].versions] == [2, 1]
        for limit in (1, 2, 10):
            found = []
            while page := store.registry.list(scope, found[-1].name if found else None, limit):
                assert len(page) <= limit
                found += page
            assert found == whole
        live = [view.live for view in whole if view.live is not None]
        assert store.registry.live(scope) == live
        for name in ("alice:d", "alice:a@1", "nobody:a", "ann:a", "tiny"):
            with pytest.raises(NotFound):
                store.registry.list(scope, name, 1)
    with pytest.raises(NotFound):
        store.registry.list(its_own, "bob:b")
    read = []
    monkeypatch.setattr(version_rows, "resolved_of", read.append)
    store.registry.list(tenant, "alice:b", 1)
    assert [row.number for row in read] == [2, 1]
    read.clear()
    store.registry.live(tenant)
    assert len(read) == len(live) + 1


def test_the_day_of_last_use_is_written_once(store, tenant):
    token = store.keys.issue(tenant, None).api_key
    writes = []

    def listen(connection, cursor, statement, *_):
        writes.append(statement) if statement.startswith("UPDATE") else None

    event.listen(store._system.engine, "before_cursor_execute", listen)
    for _ in range(5):
        assert store.keys.verify(token)
    event.remove(store._system.engine, "before_cursor_execute", listen)
    assert len(writes) == 1
    used = next(key for key in store.keys.list(tenant) if token.split("_")[2] == key.id)
    assert len(used.last_used_day) == len("2026-01-01")


def test_keys_get_no_more_than_their_maker_and_kind_may(store, tenant, alice):
    assert store.keys.issue(tenant, None).grants == GRANTS
    assert store.keys.issue(tenant, "alice").grants == USER_GRANTS
    weak = store.keys.verify(store.keys.issue(tenant, None, frozenset({"generate", "keys:admin"})).api_key)
    assert store.keys.issue(weak, "alice").grants == {"generate"}
    for scope, user, grants in (
        (weak, None, {"jobs:write"}),
        (tenant, "alice", {"keys:admin"}),
        (tenant, None, {"everything"}),
        (tenant, None, set()),
    ):
        with pytest.raises(Invalid) as caught:
            store.keys.issue(scope, user, frozenset(grants))
        assert caught.value.param == "scopes"
    for nobody in ("nobody", "task:e2e", "../x", ""):
        with pytest.raises(NotFound):
            store.keys.issue(tenant, nobody)


def test_the_admin_key_is_the_admins_alone(store, settings):
    assert store.keys.verify((settings.data_dir / "secrets/admin_key").read_text().strip()) == Admin()
    for token in ("", "x", "é", "\udc80", "pfx_live_", "Bearer x"):
        assert store.keys.verify(token) is None


def test_usage_is_told_by_owner_and_day(store, tenant, other_tenant, alice):
    store.usage.record(tenant, alice, 5, 7)
    store.usage.record(tenant, alice, 1, 1)
    store.usage.record(tenant, None, 100, 0)
    assert store.usage.tokens_today(tenant.tenant_id) == 114
    assert store.usage.tokens_today(other_tenant.tenant_id) == 0
    (row,) = store.usage.report(tenant, user="alice")
    assert (row.user, row.requests, row.prompt_tokens, row.completion_tokens) == ("alice", 2, 6, 8)
    assert store.usage.report(user_scope(store, tenant, "alice")) == [row]
    assert store.usage.report(tenant, start="2999-01-01") == []
    assert store.usage.report(tenant, end="1999-01-01") == []
    erasure = store.erasure.begin(tenant, "alice")
    store.usage.record(tenant, alice, 1, 1)  # a row of the batch that ended as the user was erased
    store.erasure.purge(erasure.id)
    store.usage.record(tenant, alice, 1, 1)
    (total,) = store.usage.report(tenant)
    assert (total.user, total.requests, total.prompt_tokens) == (None, 5, 108)


def test_a_replayed_request_makes_a_new_thing_once_the_old_one_is_deleted(store, tenant, alice):
    first = upload(store, tenant, alice, idempotency_key="k")
    store.datasets.delete(tenant, first.id)
    second = upload(store, tenant, alice, idempotency_key="k")
    assert second.id != first.id
    assert files_on_disk(store) == {second.place}


def test_an_upload_over_the_cap_leaves_nothing(store, settings, tenant, alice):
    small = open_store(settings.model_copy(update={"max_upload_bytes": 1000}))
    with small.datasets.writer(tenant, alice, "x") as writer:
        writer.write(rows(("a" * 600, "b")))
        with pytest.raises(TooLarge) as caught:
            writer.write(rows(("a" * 600, "b")))
    assert caught.value.param == "file"
    small.close()
    assert everything_kept(store) == []


@pytest.mark.parametrize("data", [b"", b"{}", b'{"prompt": "p"}\n', b"\xff\n"])
def test_a_bad_upload_leaves_nothing(store, settings, tenant, alice, data):
    with pytest.raises(Invalid):
        upload(store, tenant, alice, data)
    assert store.datasets.list(tenant) == []
    assert everything_kept(store) == []


def test_another_purpose_is_refused(store, tenant, alice):
    with pytest.raises(Invalid) as caught:
        store.datasets.writer(tenant, alice, "x", "assistants")
    assert caught.value.param == "purpose"


def test_a_file_name_is_only_a_label(store, settings, tenant, alice):
    with store.datasets.writer(tenant, alice, "../../etc/passwd") as writer:
        writer.write(rows(("a", "b")))
        dataset = writer.finish()
    assert store.datasets.get(tenant, dataset.id).filename == "../../etc/passwd"
    assert files_on_disk(store) == {dataset.place}


def test_files_and_users_are_paged(store, tenant, alice):
    made = [upload(store, tenant, alice).id for _ in range(4)]
    listed = [dataset.id for dataset in store.datasets.list(tenant)]
    assert sorted(listed) == sorted(made)
    assert [d.id for d in store.datasets.list(tenant, after=listed[0], limit=2)] == listed[1:3]
    for name in ("bob", "carol"):
        store.owners.create_user(tenant, name)
    page = store.owners.list_users(tenant, after="alice", limit=1)
    assert [view.owner.name for view in page] == ["bob"]


def test_tenants_have_the_limits_that_they_were_given(store):
    limits = TenantLimits(max_queued=1, max_jobs=1, requests_per_minute=60, tokens_per_day=1000)
    made, key = store.tenants.create(Admin(), "Acme Corp", limits)
    assert store.tenants.get(made.id) == made
    assert (made.max_queued, made.requests_per_minute, made.tokens_per_day) == (1, 60, 1000)
    scope = store.keys.verify(key)
    owner = store.owners.create_user(scope, "alice")
    queue(store, scope, owner, "voice")
    with pytest.raises(Quota):
        queue(store, scope, owner, "voice")
    with pytest.raises(Conflict):
        store.tenants.create(Admin(), "Acme Corp")
    for name in ("", " x", "a\nb", "x" * 65):
        with pytest.raises(Invalid):
            store.tenants.create(Admin(), name)
