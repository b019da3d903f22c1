"""The ground the project stands on: pins, sizes, licence, container form, and documents that tell the truth."""

import ast
import gzip
import importlib
import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest
import yaml
from pydantic_settings import BaseSettings

ROOT = Path(__file__).resolve().parents[3]
PACKAGES = ("prefix_engine", "prefix_store", "service", "trainer_worker")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])


def pins(requirements):
    found = {}
    for requirement in requirements:
        match = re.fullmatch(r"([A-Za-z0-9._-]+)(?:\[[a-z]+\])?==([0-9][0-9A-Za-z.]*)", requirement)
        assert match, f"{requirement} is not pinned exactly"
        found[re.sub(r"[-_.]+", "-", match[1]).lower()] = match[2]
    return found


def test_every_dependency_is_pinned_and_so_is_what_it_pulls_in():
    project = PYPROJECT["project"]
    wanted = pins(sum(project["optional-dependencies"].values(), project["dependencies"]))
    held = pins((ROOT / "constraints.txt").read_text().split())
    assert wanted.items() <= held.items()
    assert len(held) > len(wanted)


def test_redis_is_a_dependency_though_its_server_is_optional():
    assert "redis" in pins(PYPROJECT["project"]["dependencies"])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_above_300_lines(package):
    long = {
        str(path.relative_to(ROOT)): lines
        for path in (ROOT / package).rglob("*.py")
        if "migrations" not in path.parts  # records of what was, not code to read
        and (lines := len(path.read_text().splitlines())) > 300
    }
    assert not long


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is(package):
    silent = [
        str(path.relative_to(ROOT))
        for path in (ROOT / package).rglob("*.py")
        if path.read_text().strip() and not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


@pytest.mark.parametrize("package", PACKAGES)
def test_no_module_is_a_bucket(package):
    buckets = {"utils", "util", "helpers", "common", "manager", "misc", "crud"}
    assert not [path.name for path in (ROOT / package).rglob("*.py") if path.stem in buckets]


def test_packages_import_only_what_the_layout_allows():
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert linted.returncode == 0, linted.stdout


def test_test_modules_have_names_of_their_own():
    names = Counter(p.name for p in (ROOT / "tests").rglob("*.py") if p.name != "conftest.py")
    assert not [name for name, count in names.items() if count > 1]


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_the_changelog_knows_this_version():
    assert f"## [{PYPROJECT['project']['version']}]" in (ROOT / "CHANGELOG.md").read_text()


def make_targets():
    return set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_make_command_that_a_document_names_exists(document):
    named = set(
        re.findall(
            r"\bmake ([a-z-]+)\b(?=[`\s])",
            "\n".join(re.findall(r"`[^`]+`|^    .*|^make .*", document.read_text(), re.MULTILINE)) + "\n",
        )
    )
    assert named <= make_targets()


def test_every_test_that_the_threat_model_names_exists():
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "SECURITY.md").read_text()))
    there = set(
        re.findall(
            r"^def (test_\w+)",
            "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py")),
            re.MULTILINE,
        )
    )
    assert len(named) > 20
    assert not named - there


def test_readme_names_the_commands_of_a_newcomer():
    for target in ("demo", "serve", "test"):
        assert f"make {target}" in README


def test_readme_is_short_and_its_tree_is_true():
    assert len(README.splitlines()) <= 150
    tree = re.search(r"```text\n(.*?)```", README, re.DOTALL)[1]
    named = re.findall(r"^(\S+/|\S+\.\w+|Makefile|Dockerfile)\s", tree, re.MULTILINE)
    assert len(named) > 8
    assert not [name for name in named if not (ROOT / name).exists()]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert not [link for link in links if not (document.parent / link).exists()]


def test_ci_does_what_readme_tells():
    steps = re.findall(r"^make ([a-z]+)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert steps == ["setup", "lint", "test"]


def test_carried_datasets_have_the_rows_that_their_readme_says():
    folder = ROOT / "examples" / "data"
    files = list(folder.glob("*.jsonl.gz"))
    assert sum(path.stat().st_size for path in files) < 3_000_000
    table = (folder / "README.md").read_text()
    for path in folder.glob("*_train.jsonl.gz"):
        name = path.name.removesuffix("_train.jsonl.gz")
        other = folder / f"{name}_{'valid' if name == 'e2e' else 'eval'}.jsonl.gz"
        trained, asked = (len(gzip.decompress(p.read_bytes()).splitlines()) for p in (path, other))
        row = rf"^\| `{name}`[^|]*\| {trained:,} \| {asked:,}[ |]"
        assert re.search(row, table, re.MULTILINE), f"{name}: {trained:,} and {asked:,}"
    assert not [path.name for path in files if "webnlg" in path.name]


def test_data_of_the_papers_comparison_has_the_rows_that_the_readme_says_and_webnlg_is_named_non_commercial():
    folder = ROOT / "examples" / "data"
    table = (folder / "README.md").read_text()
    files = sorted((folder / "paper").glob("*.jsonl.gz"))
    assert len(files) == 7
    assert sum(path.stat().st_size for path in files) < 2_500_000
    for path in files:
        lines = gzip.decompress(path.read_bytes()).splitlines()
        row = rf"^\| `paper/{path.name.removesuffix('.jsonl.gz')}` \| {len(lines):,}[ |]"
        assert re.search(row, table, re.MULTILINE), f"{path.name}: {len(lines):,}"
    assert re.search(r"^\| `paper/webnlg_\*`.*non-commercial", table, re.MULTILINE)


COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def settings_names():
    """Every PREFIX_ variable that some process reads."""
    found = set()
    for package in ("prefix_store", "service", "trainer_worker"):
        for thing in vars(importlib.import_module(f"{package}.settings")).values():
            if isinstance(thing, type) and issubclass(thing, BaseSettings):
                found |= {f"PREFIX_{field.upper()}" for field in thing.model_fields}
    return found


def test_compose_runs_both_processes_on_one_volume():
    services = COMPOSE["services"]
    assert services["service"]["command"] == ["python", "-m", "service"]
    assert services["worker"]["command"] == ["python", "-m", "trainer_worker"]
    for process in services.values():
        assert process["volumes"] == ["data:/var/lib/prefixserve"]
        assert process["environment"]["PREFIX_DATA_DIR"] == "/var/lib/prefixserve"
    assert "data" in COMPOSE["volumes"]


def test_compose_publishes_the_api_to_this_machine_alone():
    assert COMPOSE["services"]["service"]["ports"] == ["127.0.0.1:8000:8000"]
    assert "ports" not in COMPOSE["services"]["worker"]


def test_compose_and_image_name_only_settings_that_exist():
    named = {name for process in COMPOSE["services"].values() for name in process["environment"]}
    named |= set(re.findall(r"PREFIX_[A-Z_]+", DOCKERFILE))
    assert named <= settings_names()


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_settings_that_exist(document):
    tests = {"PREFIX_TEST_POSTGRES_URL", "PREFIX_TEST_REDIS_URL", "PREFIX_TEST_SCENARIOS"}
    clients = {"PREFIX_URL", "PREFIX_API_KEY", *tests}
    named = set(re.findall(r"\bPREFIX_[A-Z_]*[A-Z]\b", document.read_text()))
    assert named <= settings_names() | clients


def test_the_image_holds_every_package_and_runs_without_root():
    for package in PACKAGES:
        assert f"COPY {package} ./{package}" in DOCKERFILE
        assert f"!{package}" in (ROOT / ".dockerignore").read_text().splitlines()
    _, *stages = DOCKERFILE.split("FROM ")
    users = {
        stage.split(" AS ")[1].split()[0]: re.findall(r"^USER (.*)$", stage, re.MULTILINE)
        for stage in stages[1:]
    }
    assert users == {
        "base": ["prefixserve"],
        "ops": ["root", "prefixserve"],
        "process": [],
    }  # none but its base's
    final = stages[-1]
    assert final.startswith("base AS process")
    assert "/livez" in final.partition("HEALTHCHECK")[2]
