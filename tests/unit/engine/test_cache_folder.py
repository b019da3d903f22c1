"""Nobody else can have this user run code from the cache folder, and usual homes are none the worse for it."""

import os
import pwd
from types import SimpleNamespace

import pytest

from prefix_engine.cache_folder import cache_folder, is_own, making


@pytest.mark.parametrize(
    ("mode", "group", "members", "safe"),
    [
        (0o775, "own", [], True),
        (0o775, "own", ["me"], True),
        (0o775, "own", ["me", "another"], False),
        (0o775, "another", [], False),
        (0o775, "beside", [], True),
        (0o775, "beside", ["another"], False),
        (0o1775, "another", ["another"], True),
        (0o755, "another", ["another"], True),
    ],
)
def test_who_could_exchange_the_cache_folder_must_be_this_user(
    mode, group, members, safe, tmp_path, monkeypatch
):
    above = tmp_path / "above"
    above.mkdir()
    above.chmod(mode)
    monkeypatch.setenv("XDG_CACHE_HOME", str(above))
    own = above.stat().st_gid
    mine = own if group == "own" else own + 1
    monkeypatch.setattr("os.getegid", lambda: own + 1 if group == "beside" else mine)
    monkeypatch.setattr("os.getgroups", lambda: [own] if group == "beside" else [])
    name = pwd.getpwuid(os.getuid()).pw_name
    monkeypatch.setattr("pwd.getpwuid", lambda _: SimpleNamespace(pw_name=name, pw_gid=mine))
    told = SimpleNamespace(gr_mem=[name if one == "me" else one for one in members])
    monkeypatch.setattr("grp.getgrgid", lambda _: told)
    if safe:
        assert cache_folder() == above / "prefixserve"
    else:
        with pytest.raises(PermissionError, match="writable for its group"):
            cache_folder()


def test_what_is_made_can_be_written_by_nobody_else_whatever_the_umask(tmp_path):
    before = os.umask(0o002)
    try:
        with making(tmp_path / "made") as made:
            made.unlink()  # as a compiler does
            made.write_text("whole")
            assert made.stat().st_mode & 0o022
    finally:
        os.umask(before)
    assert is_own(tmp_path / "made")


def test_a_link_is_nobodys_own(tmp_path):
    (tmp_path / "file").touch(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert is_own(tmp_path / "file")
    assert not is_own(tmp_path / "link")
