"""Secrets in files: read where the folder is named, behind what is given otherwise; the sample's start nothing."""

import pytest
from pydantic import ValidationError

from prefix_store import StoreSettings
from prefix_store.errors import StoreError

URLS = {
    "prefix_database_url": "postgresql://app:one@db/prefixserve",
    "prefix_system_database_url": "postgresql://system:two@db/prefixserve",
    "prefix_redis_url": "redis://:three@redis:6379/0",
    "prefix_admin_key": "an-operators-key-in-a-file",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in (*URLS, "prefix_owner_database_url"):
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in URLS.items():
        (tmp_path / name).write_text(value + "\n")
    monkeypatch.setenv("PREFIX_SECRET_FILES", str(tmp_path))
    return tmp_path


def test_secrets_are_read_from_files_and_shown_nowhere(folder):
    settings = StoreSettings()
    assert settings.url == "postgresql+psycopg://app:one@db/prefixserve"
    assert settings.two_roles
    assert settings.redis_url.get_secret_value() == URLS["prefix_redis_url"]
    assert settings.admin_key.get_secret_value() == URLS["prefix_admin_key"]
    assert not [part for part in ("one@", "two@", "three@", "operators") if part in repr(settings)]


def test_what_the_environment_says_goes_before_a_file(folder, monkeypatch):
    monkeypatch.setenv("PREFIX_DATABASE_URL", "postgresql://app:other@db/prefixserve")
    assert StoreSettings().url == "postgresql+psycopg://app:other@db/prefixserve"


@pytest.mark.parametrize("name", [*URLS, "prefix_owner_database_url"])
def test_a_sample_secret_is_refused_by_the_settings_name_and_with_what_to_do(folder, name):
    value = URLS.get(name, URLS["prefix_database_url"])
    (folder / name).write_text(
        value.replace("an-", "changethis-").replace(":one", ":changethis").replace(":t", ":changethis-t")
    )
    with pytest.raises(ValidationError, match=r"holds the sample's secret.*make your own") as refused:
        StoreSettings()
    assert refused.value.errors()[0]["loc"] == (name.removeprefix("prefix_"),)


def test_a_folder_that_is_not_there_is_refused(folder, monkeypatch):
    monkeypatch.setenv("PREFIX_SECRET_FILES", str(folder / "absent"))
    with pytest.raises(StoreError, match=r"PREFIX_SECRET_FILES names no folder: .*absent"):
        StoreSettings()


def test_a_link_out_of_the_folder_is_refused_rather_than_not_seen(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "url"
    elsewhere.write_text(URLS["prefix_database_url"])
    (folder / "prefix_owner_database_url").symlink_to(elsewhere)
    with pytest.raises(StoreError, match=r"prefix_owner_database_url leads out of the folder"):
        StoreSettings()


def test_an_empty_file_is_refused_rather_than_no_database(folder):
    (folder / "prefix_database_url").write_text("\n")
    with pytest.raises(StoreError, match=r"prefix_database_url is empty"):
        StoreSettings()
