"""What code that acts for a caller cannot name: whatever looks over all tenants. Beside the same of live objects."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import service
from prefix_store import ScopedStore, Store, StoreSettings, open_store
from service.parts import Parts

FOLDER = Path(service.__file__).parent
FOR_CALLERS = sorted(
    [*(FOLDER / "routes").glob("*.py")]
    + [
        FOLDER / f"{name}.py"
        for name in ("deps", "erasing", "deletion", "uploads", "admission", "prompts", "answers")
    ]
)
OVER_ALL_TENANTS = {
    "db",
    "engines",
    "claims",
    "key_lookup",
    "unfinished",
    "janitor",
    "migrate",
    "roles",
    "core",
}


@pytest.mark.parametrize("path", FOR_CALLERS, ids=lambda path: path.stem)
def test_what_acts_for_a_caller_names_nothing_that_looks_over_all_tenants(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            assert getattr(node.value, "id", "") == "self", (path.name, node.lineno, node.attr)
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "prefix_store":
            assert node.module.partition(".")[2] not in OVER_ALL_TENANTS, (path.name, node.module)
            assert not {"Store", "open_store"} & {name.name for name in node.names}, path.name


def test_of_the_store_routes_have_the_scoped_one_alone():
    fields = inspect.get_annotations(Parts)
    assert fields["store"] is ScopedStore
    assert [name for name, kind in fields.items() if kind is Store] == ["_system"]


def test_verbs_over_all_tenants_are_not_of_the_scoped_store(tmp_path):
    store = open_store(StoreSettings(data_dir=tmp_path, database_url=None))
    for part, verb in (("keys", "verify"), ("jobs", "claim"), ("feed", "read"), ("erasure", "resume")):
        assert hasattr(getattr(store, part), verb)
        assert not hasattr(getattr(store.scoped, part), verb), (part, verb)
    assert not hasattr(store.scoped, "janitor")
    assert not hasattr(store.scoped, "audit")
    store.close()
