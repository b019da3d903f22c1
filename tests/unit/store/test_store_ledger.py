"""The ledger of deletions: whole entries alone count, in one chain, however many write."""

import fcntl
import os
import threading

import pytest

from prefix_store.errors import ForeignSecrets, StoreError, Unavailable
from prefix_store.ledger import OWN, Ledger

PEPPER = b"p" * 32


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger", PEPPER)


def fill(ledger, count=3):
    for number in range(count):
        ledger.append("user.erased", "ten-1", f"own-{number}", 1000.5 + number)


def test_entries_come_back_in_their_order_and_nobody_else_may_read_them(ledger):
    fill(ledger)
    assert [entry.object_id for entry in ledger.entries()] == ["own-0", "own-1", "own-2"]
    assert [entry.number for entry in ledger.entries()] == [1, 2, 3]
    assert (ledger.folder / OWN).stat().st_mode & 0o077 == 0
    assert Ledger(ledger.folder.parent / "nowhere", PEPPER).entries() == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_what_root_writes_first_belongs_to_the_datas_owner(tmp_path):
    """A backup that root takes before anything was deleted must not shut the service out of the ledger."""
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 65534, 65533)
    ledger = Ledger(tmp_path / "ledger", PEPPER, data)
    fill(ledger)
    for path in (ledger.folder, ledger.folder / OWN):
        assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65533)


def test_half_an_entry_of_a_killed_process_is_passed_over_and_written_over(ledger):
    fill(ledger)
    path = ledger.folder / OWN
    whole = path.read_bytes()
    for cut in (1, 20, len(whole.splitlines(keepends=True)[-1])):
        path.write_bytes(whole[:-cut])
        assert len(ledger.entries()) == 2
    path.write_bytes(whole[:-5])
    ledger.append("key.revoked", "ten-1", "k", 2000.0)
    assert [entry.object_id for entry in ledger.entries()] == ["own-0", "own-1", "k"]


def test_any_changed_byte_is_noticed(ledger):
    fill(ledger)
    path = ledger.folder / OWN
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    changed = [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole) - 1, 7)]
    for spoiled in (*changed, lines[0] + lines[2], lines[1] + lines[0], lines[0] + lines[0]):
        path.write_bytes(spoiled)
        with pytest.raises(StoreError, match="changed or removed"):
            ledger.entries()
    with pytest.raises(StoreError, match="changed or removed"):
        Ledger(ledger.folder, b"q" * 32).entries()


def test_nobody_with_other_secrets_spoils_the_chain(ledger):
    for count in (1, 3):
        fill(ledger, count)
        whole = (ledger.folder / OWN).read_bytes()
        with pytest.raises(ForeignSecrets, match="PREFIX_LEDGER_DIR") as caught:
            fill(Ledger(ledger.folder, b"q" * 32))
        assert str(ledger.folder) in str(caught.value)
        assert (ledger.folder / OWN).read_bytes() == whole
    assert len(ledger.entries()) == 4


def test_long_ids_are_read_back_whole(ledger):
    for number in range(3):
        ledger.append("dataset.deleted_with_versions", "t" * 250, f"{number}" * 250, 1000.5)
    assert len(ledger.entries()) == 3


def test_many_writers_make_one_chain(ledger):
    threads = [threading.Thread(target=fill, args=(Ledger(ledger.folder, PEPPER), 10)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [entry.number for entry in ledger.entries()] == list(range(1, 41))


def test_a_lock_that_is_never_let_go_holds_nobody_up_for_ever(ledger, monkeypatch):
    fill(ledger, 1)
    monkeypatch.setattr("prefix_store.ledger._PATIENCE_S", 0.05)
    with (ledger.folder / OWN).open("rb") as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(Unavailable):
            fill(ledger, 1)
    fill(ledger, 1)
    assert len(ledger.entries()) == 2
