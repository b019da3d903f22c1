"""One whole story on the store, in a process of its own that may be killed anywhere and is then told on by another.

Each operation is written to `story.jsonl` before it is begun and when it was acknowledged. Whoever goes on does not
repeat what was acknowledged; what was only begun is asked for again as a client would: with its Idempotency-Key, or
after a look at how things stand. Imports no torch.
"""

import json
import os
import secrets
import shutil
import time

from store_making import BASE, best, rows, trained

from faults.story_checks import outlived, problems
from faults.told import PAUSE_S, Told
from prefix_store import StoreSettings, failpoints, open_store
from prefix_store.crypto import Place
from prefix_store.errors import Conflict, LeaseLost, NotFound, StoreError, Unavailable
from prefix_store.publish import ResultFile
from prefix_store.scope import Admin
from prefix_store.usage import Receipt

CANARY = "kingfisher-7731"
ENDED = {"succeeded", "failed", "cancelled"}
# What each training makes: the file that it learns from, the prefix, the bytes.
TRAININGS = {
    "one": ("one", "alice:voice", b"alice's first"),
    "two": ("two", "alice:voice", b"alice's second"),
    "bob": ("bob", "bob:voice", b"bob's"),
    "task": ("two", "task:e2e", b"of everybody"),
}


class Story:
    """Tells; may be told on by another process at any line."""

    def __init__(self, store, home, *, copies):
        self.store, self.home, self._copies = store, home, copies
        self.told = Told(home / "story.jsonl")
        self.scope = None

    def tell(self):
        """From the tenant's first day to a user's last."""
        do, store = self.told.do, self.store
        token = do("tenant", self._tenant)["key"]
        self.scope = scope = store.keys.verify(token)
        for name in ("alice", "bob"):
            do(f"user {name}", lambda again, name=name: self._user(name, again))
        key = do("key", self._key)
        for name, owner in (("one", "alice"), ("two", "alice"), ("bob", "bob")):
            do(f"file {name}", lambda _, name=name, owner=owner: self._upload(name, owner))
        for name in TRAININGS:
            do(f"job {name}", lambda _, name=name: self._queue(name))
            do(f"work {name}", lambda _, name=name: self._work(name))
        do("seen", lambda _: self._seen(key["token"]))
        do("feed", lambda _: [[change.seq, change.kind] for change in store.feed.read(0)])
        for number in (1, 2):
            do(f"usage {number}", lambda _, number=number: self._use(number))
        do("rollback", lambda _: self._roll_back())
        if self._copies:
            do("backup", self._back_up)
        do("ids", lambda _: self._ids())
        do("delete version", lambda again: self._gone(again, store.registry.delete_version, "alice:voice", 2))
        do("job dropped", lambda _: self._queue("dropped", "one", "alice:voice"))
        do("cancel", self._cancel)
        do("revoke", lambda again: self._gone(again, store.keys.revoke, key["id"]))
        do("delete file", self._delete_file)
        do("left", lambda _: self._left())
        do("erase", lambda again: self._gone(again, store.erasure.begin, "alice"))
        do("erased", lambda _: self._erased())
        do("sweep", lambda _: self._sweep())
        if self._copies:
            do("restore", self._restore)
        assert scope.user is None

    # ---- what a tenant makes

    def _tenant(self, again):
        if again:  # its key went with the answer, so it is of no use
            for found in self.store.tenants.list(Admin()):
                self.store.erasure.purge(self.store.tenants.erase(Admin(), found.id).id)
        tenant, key = self.store.tenants.create(Admin(), "acme")
        return {"id": tenant.id, "key": key}

    def _user(self, name, again):
        try:
            return self.store.owners.create_user(self.scope, name).owner_id
        except Conflict:
            if not again:
                raise
            return self.store.owners.get(self.scope, name).owner_id

    def _key(self, again):
        if again:  # one whose answer was lost is nobody's
            for found in self.store.keys.list(self.scope):
                if found.user == "alice":
                    self._gone(True, self.store.keys.revoke, found.id)
        made = self.store.keys.issue(self.scope, "alice")
        return {"id": made.id, "token": made.api_key}

    def _upload(self, name, owner):
        target = self.store.owners.get(self.scope, owner)
        with self.store.datasets.writer(self.scope, target, f"{name}.jsonl", idempotency_key=name) as writer:
            writer.write(rows((f"{CANARY} of {owner}" if owner == "alice" else "no bird", name)))
            return writer.finish().id

    def _queue(self, name, file=None, prefix=None):
        file, prefix = (file, prefix) if file else TRAININGS[name][:2]
        files = [self.told.done[f"file {file}"]]
        if prefix.startswith("task:"):
            owner = self.store.owners.ensure_task(self.scope, prefix[5:])
            files.append(self.told.done["file bob"])
        else:
            owner = self.store.owners.get(self.scope, prefix.partition(":")[0])
        bare = prefix.rpartition(":")[2]
        made = self.store.jobs.create(
            self.scope, owner, bare, files, base_fingerprint=BASE, idempotency_key=f"job {name}"
        )
        return made.id

    # ---- what a worker does

    def _work(self, name):
        """Claim until the job has ended, as any worker would."""
        job_id, give_up = self.told.done[f"job {name}"], time.monotonic() + 30
        while time.monotonic() < give_up:
            job = self.store.jobs.get(self.scope, job_id)
            if job.status in ENDED:
                return [job.status, job.fine_tuned_model, list(job.result_files)]
            claim = self.store.jobs.claim("story")
            if claim is None:
                time.sleep(0.05)  # somebody's lease runs
            else:
                self._attempt(name, claim)
        raise StoreError(f"job {name} does not end")

    def _attempt(self, name, claim):
        jobs = self.store.jobs
        try:
            for file in claim.job.training_files:
                self.store.datasets.read(claim, file)
            if name == "one":
                self._keep(claim)
            live = jobs.live(claim)
            compared = None if live is None else live.version_id
            made = trained(TRAININGS[name][2], [ResultFile("step_metrics.csv", b"step,loss\n")])
            done = self._settle(claim, made, compared)
            self.told.line(f"published {name}", "ended", result=[done.full_name, done.promoted])
        except LeaseLost:
            jobs.cancelled(claim)

    def _settle(self, claim, made, compared):
        """While the store is away a worker holds on to the result, as long as the job is its own."""
        while True:
            try:
                return self.store.jobs.complete(claim, made, promote=True, compared_with=compared, reason="x")
            except Unavailable:
                time.sleep(PAUSE_S)
                self._beat(claim)

    def _beat(self, claim):
        if self.store.jobs.heartbeat(claim, {"step": 1}) != "continue":
            raise LeaseLost("another's")

    def _keep(self, claim):
        """Two checkpoints, and what was called by the first one's name; what cannot be kept is passed over."""
        for step in (1, 2):
            try:
                self._beat(claim)
                self.store.jobs.save_checkpoint(claim, step, f"state {step}".encode(), best(step=step))
                self.told.line("kept", "ended", result=step)
            except Unavailable:
                time.sleep(PAUSE_S)

    # ---- what is called, moved and taken away

    def _seen(self, key):
        store, scope = self.store, self.scope
        user = store.keys.verify(key)
        called = {}
        for name in ("alice:voice", "alice:voice@1", "task:e2e"):
            called[name] = store.registry.read(store.registry.resolve(user, name)).decode()
        found = {view.name: [v.number for v in view.versions] for view in store.registry.list(scope)}
        return {
            "called": called,
            "versions": found,
            "jobs": len(store.jobs.list(scope)),
            "files": len(store.datasets.list(scope, purpose="fine-tune")),
            "results": len(store.datasets.list(scope, purpose="fine-tune-results")),
            "keys": len(store.keys.list(scope)),
        }

    def _use(self, number):
        owner = self.store.owners.get(self.scope, "bob")
        self.store.usage.record(self.scope, owner, 5, 7, receipt=Receipt(f"story {number}", 1))

    def _roll_back(self):
        return self.store.registry.rollback(self.scope, "alice:voice", "back").number

    def _gone(self, again, act, *what):
        """A deletion; who asks again finds it done."""
        try:
            act(self.scope, *what)
        except NotFound:
            if not again:
                raise
        return "gone"

    def _cancel(self, again):
        try:
            self.store.jobs.cancel(self.scope, self.told.done["job dropped"])
        except Conflict:
            if not again:
                raise
        return "cancelled"

    def _delete_file(self, again):
        def act(scope, file):
            self.store.datasets.delete(scope, file, versions=True)

        return self._gone(again, act, self.told.done["file one"])

    def _ids(self):
        """Of the files that the deletions before the erasure must take away."""
        versions = self.store.registry.versions(self.scope, "alice:voice")
        return [self.told.done["file one"], *(version.resolved.version_id for version in versions)]

    def _left(self):
        """Files that were deleted and are there, once upkeep has had its turn, and files that no row names."""
        self.store.erasure.resume()
        there = {place.object_id for place, _ in self.store.blobs.places()}
        orphans = self.store.fsck.look(grace_seconds=0.0).litter
        return {
            "deleted": [name for name in self.told.done["ids"] if name in there],
            "orphans": [finding.place.object_id for finding in orphans],
        }

    def _erased(self):
        """Wait for the certificate; files of hers that are there nevertheless."""
        give_up = time.monotonic() + 60
        while self.store.erasure.resume():
            if time.monotonic() > give_up:
                raise StoreError("the erasure does not end")
            time.sleep(0.05)
        alice = self.told.done["user alice"]
        return [place.object_id for place, _ in self.store.blobs.places() if place.owner_id == alice]

    def _sweep(self):
        """With something to sweep up: a file that a killed process left before its row."""
        place = Place(self.scope.tenant_id, self.told.done["user bob"], f"ver-{secrets.token_hex(8)}")
        self.store.blobs.put(place, b"nobody's")
        return self.store.janitor.sweep(0.0)

    # ---- copies

    def _back_up(self, again):
        folder = self.home / "backup"
        if again:
            shutil.rmtree(folder, ignore_errors=True)
        return self.store.backups.make(folder).id

    def _restore(self, _again):
        """Into an empty store each time: what was cut short is not gone on with."""
        number = sum(1 for path in self.home.glob("restored-*"))
        folder = self.home / f"restored-{number}"
        folder.mkdir()
        shutil.copytree(self.home / "store" / "secrets", folder / "secrets")
        settings = restored_settings(folder, number)
        restored = open_store(settings)
        try:
            restored.restore.run(self.home / "backup", [self.store.settings.ledger_folder])
        finally:
            restored.close()
        return number


def restored_settings(folder, number):
    """An empty store of the same form; a PostgreSQL database is there for each number."""
    urls = json.loads(os.environ.get("STORY_RESTORES", "[]"))
    return StoreSettings(data_dir=folder, **(urls[number] if urls else {}))


def settings_of(home):
    return StoreSettings(data_dir=home / "store", lease_seconds=0.8)


def main(home, *, copies):
    """Open as a restarted process does, tell, look; what is wrong is in `result.json`."""
    began = time.monotonic()
    store = open_store(settings_of(home))
    try:
        story = Story(store, home, copies=copies)
        for start in (store.prepare, store.erasure.resume):
            story.told.do(f"start {os.getpid()} {start.__name__}", lambda _, start=start: start())
        wrong = outlived(store)
        story.told.do(f"start {os.getpid()} sweep", lambda _: store.janitor.sweep())
        started = time.monotonic() - began
        story.tell()
        points = failpoints.passed()
        failpoints.arm("")
        wrong += problems(story)
    finally:
        store.close()
    orphans = story.told.done["left"]["orphans"]
    said = {"started": round(started, 3), "passed": points, "orphans": orphans, "wrong": wrong}
    (home / "result.json").write_text(json.dumps(said))
