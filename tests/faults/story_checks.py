"""What must hold at the end of a story, whatever happened in between; each broken promise is one line."""

import contextlib

from prefix_store.errors import NotFound, StoreError
from prefix_store.local_files import LocalFiles
from prefix_store.named_files import living_owners, noted_files, whole
from prefix_store.replay import Replay
from prefix_store.scope import Admin


class Look:
    """Collects what is not as it must be."""

    def __init__(self):
        self.wrong = []

    def equal(self, what, found, wanted):
        if found != wanted:
            self.wrong.append(f"{what}: {found!r}, not {wanted!r}")


def problems(story):
    """What is wrong with a story that was told to its end."""
    look = Look()
    _meanwhile(look, story)
    _tenant(look, story.store, story)
    _files(look, story.store, story)
    _ledger(look, story)
    if "restore" in story.told.done:
        _restored(look, story)
    return look.wrong


def outlived(store):
    """Files of owners whose erasure is certified."""
    if store.erasure.pending():
        return []
    with whole(store.fsck._owner) as connection:
        living = living_owners(connection)
    there = [place for place, _ in store.blobs.places() if (place.tenant_id, place.owner_id) not in living]
    return [f"{place.object_id} is there though its owner's erasure is certified" for place in there]


def _meanwhile(look, story):
    """What was acknowledged on the way: nothing was made twice."""
    done = story.told.done
    for name, version in (("one", 1), ("two", 2), ("bob", 1), ("task", 1)):
        prefix = {"bob": "bob:voice", "task": "task:e2e"}.get(name, "alice:voice")
        status, model, files = done[f"work {name}"]
        look.equal(f"job {name}", [status, model, len(files)], ["succeeded", f"{prefix}@{version}", 1])
        published = done.get(f"published {name}")
        if published is not None:
            look.equal(f"acknowledged {name}", published, [model, True])
    wanted = {
        "called": {
            "alice:voice": "alice's second",
            "alice:voice@1": "alice's first",
            "task:e2e": "of everybody",
        },
        "versions": {"alice:voice": [2, 1], "bob:voice": [1], "task:e2e": [1]},
        "jobs": 4,
        "files": 3,
        "results": 4,
        "keys": 2,
    }
    look.equal("seen", done["seen"], wanted)
    look.equal("files of what was deleted", done["left"]["deleted"], [])
    look.equal("files of an erased user", done["erased"], [])
    told = [number for number, _ in done["feed"]]
    look.equal("the feed's numbers", told, list(range(1, len(told) + 1)))
    kinds = [kind for _, kind in done["feed"]]
    look.equal("versions that went live", kinds.count("version_live"), 4)
    look.equal("rolled back to", done["rollback"], 1)


def _tenant(look, store, story, *, restored=False):
    """What is left of the tenant, and that nothing of alice is."""
    scope, done = story.scope, story.told.done
    look.equal("tenants", [tenant.id for tenant in store.tenants.list(Admin())], [done["tenant"]["id"]])
    look.equal("users", [view.owner.owner_id for view in store.owners.list_users(scope)], [done["user bob"]])
    look.equal("keys", [key.user for key in store.keys.list(scope)], [None])
    look.equal("alice's key", store.keys.verify(done["key"]["token"]), None)
    look.equal(
        "the tenant's key", getattr(store.keys.verify(done["tenant"]["key"]), "key_id", ""), scope.key_id
    )
    jobs = {job.id: job.status for job in store.jobs.list(scope)}
    look.equal("jobs", jobs, {done["job bob"]: "succeeded", done["job task"]: "succeeded"})
    kept = {done["file bob"], *done["work bob"][2], *done["work task"][2]}
    files = [dataset.id for dataset in store.datasets.list(scope)]
    look.equal("files", sorted(files), sorted(kept))
    for file in files:
        store.datasets.read(scope, file)
    names = {view.name: [v.number for v in view.versions] for view in store.registry.list(scope)}
    look.equal("prefixes", names, {"bob:voice": [1]})
    look.equal("bob's", store.registry.read(store.registry.resolve(scope, "bob:voice")), b"bob's")
    for name in ("alice:voice", "alice:voice@1", "alice:voice@2", "task:e2e", "task:e2e@1"):
        with contextlib.suppress(NotFound):
            store.registry.resolve(scope, name)
            look.wrong.append(f"{name} is back")
    used = [(day.requests, day.prompt_tokens, day.completion_tokens) for day in store.usage.report(scope)]
    look.equal("usage", used, [(2, 10, 14)])
    look.equal("open erasures", list(store.erasure.pending()), [])
    try:
        store.audit.verify()
    except StoreError as error:
        look.wrong.append(f"audit: {error}")
    if not restored:
        look.equal("claimable", store.jobs.claim("another"), None)


def _files(look, store, story, **_):
    """Every row has its file and every file its row; no draft, no note, no byte of alice."""
    found = store.fsck.look(deep=True, grace_seconds=0.0)
    look.equal("sound", found.sound, True)
    look.equal("litter", [finding.place.object_id for finding in found.litter], [])
    look.equal("files and rows", found.files, found.rows)
    with whole(store.fsck._owner) as connection:
        look.equal("noted", noted_files(connection), set())
    look.equal("kept beside", len(_kept(store.blobs.files)), found.rows)
    for path in (store.settings.data_dir / "data").rglob("*"):
        if path.is_file() and b"kingfisher-7731" in path.read_bytes():
            look.wrong.append(f"{path.name} holds a text of alice")


def _kept(files):
    """Names of all files, drafts, versions and delete markers."""
    if isinstance(files, LocalFiles):
        return [path for path in files.root.rglob("*") if path.is_file()]
    return files._versions.below(files._prefix)


def _ledger(look, story):
    """Each deletion that was acknowledged stands in it, and to apply it again finds nothing more to delete."""
    entries = story.store.ledger.entries()
    done = story.told.done
    for op, action, object_id in (
        ("revoke", "key.revoked", done["key"]["id"]),
        ("cancel", "job.cancelled", done["job dropped"]),
        ("delete file", "dataset.deleted_with_versions", done["file one"]),
        ("erase", "user.erased", done["user alice"]),
    ):
        found = [entry for entry in entries if (entry.action, entry.object_id) == (action, object_id)]
        look.equal(f"the ledger knows of {op}", bool(found), True)
    look.equal("replayed", Replay(story.store._core).apply(entries), 0)


def _restored(look, story):
    """The backup of before the deletions, restored: the same is left."""
    from faults.story import restored_settings  # noqa: PLC0415 - which imports this
    from prefix_store import open_store  # noqa: PLC0415

    number = story.told.done["restore"]
    store = open_store(restored_settings(story.home / f"restored-{number}", number))
    try:
        store.check_migrated()
        inner = Look()
        _tenant(inner, store, story, restored=True)
        _files(inner, store, story)
        look.wrong += [f"restored: {line}" for line in inner.wrong]
    finally:
        store.close()
