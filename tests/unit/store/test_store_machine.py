"""Random histories of one tenant against a small model of what it must see."""

import contextlib
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from store_making import complete, files_on_disk, queue, rows, upload

from prefix_store import StoreSettings, open_store
from prefix_store.errors import Conflict, LeaseLost, NoLiveVersion, NotFound
from prefix_store.scope import Admin

USERS = ("alice", "bob", "carol")
PREFIXES = ("voice", "style")
users, prefixes = st.sampled_from(USERS), st.sampled_from(PREFIXES)


class Prefix:
    """What the model knows of a prefix: payload by number, who was live, who is."""

    def __init__(self):
        self.last, self.versions, self.was_live, self.live = 0, {}, set(), None

    def go_live(self, number):
        self.live = number
        self.was_live.add(number)

    def take(self, numbers):
        for number in numbers:
            self.versions.pop(number, None)
            self.was_live.discard(number)
        if self.live in numbers:
            self.live = max(self.was_live, default=None)


class Registry(RuleBasedStateMachine):
    """One tenant; each step is checked by resolving every name that was ever used."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = open_store(StoreSettings(data_dir=self.folder, database_url=None, lease_seconds=60.0))
        self.store.migrate()
        self.scope = self.store.keys.verify(self.store.tenants.create(Admin(), "acme")[1])
        self.owners, self.model, self.files, self.numbers = {}, {}, {}, {}
        self.made = 0

    def teardown(self):
        self.store.close()
        shutil.rmtree(self.folder)

    def owner(self, name):
        return self.owners[name]

    @rule(name=users)
    def create_user(self, name):
        if name in self.owners:
            with pytest.raises(Conflict):
                self.store.owners.create_user(self.scope, name)
            return
        before = self.numbers.get(name)
        self.owners[name] = self.store.owners.create_user(self.scope, name)
        assert self.owners[name].owner_id != before
        self.numbers[name] = self.owners[name].owner_id
        self.files[name] = {}

    @precondition(lambda self: self.owners)
    @rule(data=st.data())
    def upload_file(self, data):
        name = data.draw(st.sampled_from(sorted(self.owners)))
        self.made += 1
        text = rows((f"p{self.made}", "c"))
        dataset = upload(self.store, self.scope, self.owner(name), text)
        self.files[name][dataset.id] = text

    @precondition(lambda self: any(self.files.values()))
    @rule(data=st.data(), prefix=prefixes, promote=st.booleans(), stale=st.booleans())
    def train(self, data, prefix, promote, stale):
        name = data.draw(st.sampled_from(sorted(name for name, files in self.files.items() if files)))
        file = data.draw(st.sampled_from(sorted(self.files[name])))
        job = queue(self.store, self.scope, self.owner(name), prefix, [file])
        claim = self.store.jobs.claim("w")
        assert claim.job_id == job.id
        self.made += 1
        payload = f"tensors {self.made}".encode()
        known = self.model.setdefault((name, prefix), Prefix())
        if stale:  # the worker stalls, another finishes: only one version appears
            self.store.jobs.release(claim)
            second = self.store.jobs.claim("w2")
            with pytest.raises(LeaseLost):
                complete(self.store, claim, b"stale", promote=promote)
            claim = second
        done = complete(self.store, claim, payload, promote=promote)
        known.last += 1
        known.versions[known.last] = (payload, file)
        if promote:
            known.go_live(known.last)
        assert (done.full_name, done.promoted) == (f"{name}:{prefix}@{known.last}", promote)

    @rule(name=users, prefix=prefixes, number=st.integers(1, 4))
    def promote(self, name, prefix, number):
        known = self.model.get((name, prefix))
        if known is None or number not in known.versions:
            with pytest.raises(NotFound):
                self.store.registry.promote(self.scope, f"{name}:{prefix}", number)
            return
        assert self.store.registry.promote(self.scope, f"{name}:{prefix}", number).live
        known.go_live(number)

    @rule(name=users, prefix=prefixes)
    def roll_back(self, name, prefix):
        known = self.model.get((name, prefix))
        older = [] if known is None or known.live is None else [n for n in known.was_live if n < known.live]
        try:
            version = self.store.registry.rollback(self.scope, f"{name}:{prefix}")
        except (NotFound, Conflict):
            assert not older
            return
        assert version.number == max(older)
        known.go_live(version.number)

    @rule(name=users, prefix=prefixes, number=st.integers(1, 4))
    def delete_version(self, name, prefix, number):
        known = self.model.get((name, prefix))
        call = (self.scope, f"{name}:{prefix}", number)
        if known is None or number not in known.versions:
            with pytest.raises(NotFound):
                self.store.registry.delete_version(*call)
        elif known.live == number:
            with pytest.raises(Conflict):
                self.store.registry.delete_version(*call)
        else:
            self.store.registry.delete_version(*call)
            known.take({number})

    @rule(name=users, prefix=prefixes)
    def delete_prefix(self, name, prefix):
        known = self.model.get((name, prefix))
        with contextlib.suppress(NotFound):
            self.store.registry.delete_prefix(self.scope, f"{name}:{prefix}")
        if known is not None:
            known.take(set(known.versions))

    @precondition(lambda self: any(self.files.values()))
    @rule(data=st.data(), versions=st.booleans())
    def delete_file(self, data, versions):
        name = data.draw(st.sampled_from(sorted(name for name, files in self.files.items() if files)))
        file = data.draw(st.sampled_from(sorted(self.files[name])))
        self.store.datasets.delete(self.scope, file, versions=versions)
        del self.files[name][file]
        for (owner, _), known in self.model.items():
            if owner == name and versions:
                known.take({number for number, (_, source) in known.versions.items() if source == file})

    @rule(name=users)
    def erase(self, name):
        if name not in self.owners:
            with pytest.raises(NotFound):
                self.store.erasure.begin(self.scope, name)
            return
        erasure = self.store.erasure.begin(self.scope, name)
        assert self.store.erasure.purge(erasure.id).state == "done"
        del self.owners[name], self.files[name]
        self.model = {key: known for key, known in self.model.items() if key[0] != name}

    @invariant()
    def names_mean_what_the_model_says(self):
        for name in USERS:
            for prefix in PREFIXES:
                known = self.model.get((name, prefix), Prefix())
                bare = f"{name}:{prefix}"
                if known.live is None:
                    with pytest.raises(NotFound) as caught:
                        self.store.registry.resolve(self.scope, bare)
                    assert isinstance(caught.value, NoLiveVersion) == bool(known.versions)
                else:
                    found = self.store.registry.resolve(self.scope, bare)
                    assert found.full_name == f"{bare}@{known.live}"
                    assert self.store.registry.read(found) == known.versions[known.live][0]

    @invariant()
    def exactly_the_files_of_the_model_lie_on_the_disk(self):
        counts = sum(len(known.versions) for known in self.model.values())
        assert len(files_on_disk(self.store)) == counts + sum(len(files) for files in self.files.values())
        listed = [version for view in self.store.registry.list(self.scope) for version in view.versions]
        assert len(listed) == counts


Registry.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRegistry = Registry.TestCase
