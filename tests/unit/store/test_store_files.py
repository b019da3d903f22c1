"""Sealed files and secrets, without a database."""

import multiprocessing
import os
import stat
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from prefix_store.blobs import Blobs
from prefix_store.crypto import HEADER, MAGIC, MasterKey, Place
from prefix_store.errors import Corrupt, StoreError, Unavailable
from prefix_store.local_files import LocalFiles
from prefix_store.secrets_folder import open_secrets
from prefix_store.settings import StoreSettings

KEY = MasterKey(bytes(range(32)))
PLACE = Place("ten-a", "own-b", "ver-c")


def seal(data, place=PLACE, key=KEY, cuts=()):
    sealer = key.sealer(place)
    edges = [0, *sorted(cuts), len(data)]
    pieces = [sealer.update(data[a:b]) for a, b in pairwise(edges)]
    return sealer.header + b"".join(pieces) + sealer.finish()


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=4))
def test_sealed_in_any_pieces_opens_to_the_same(data, cuts):
    sealed = seal(data, cuts=[min(cut, len(data)) for cut in cuts])
    assert KEY.open(sealed, PLACE) == data
    assert len(sealed) == len(data) + HEADER + 16


def test_the_envelope_is_plain_aes_gcm_with_the_documented_layout():
    sealed = seal(b"text")
    assert sealed.startswith(MAGIC + KEY.key_id)
    nonce = sealed[21:33]
    bound = sealed[:33] + b"\0\0\0\x05ten-a\0\0\0\x05own-b\0\0\0\x05ver-c"
    assert AESGCM(bytes(range(32))).decrypt(nonce, sealed[33:], bound) == b"text"


def test_no_changed_cut_or_lengthened_envelope_opens():
    sealed = seal(b"sixteen bytes of")
    changed = [sealed[:i] + bytes([sealed[i] ^ (1 << i % 8)]) + sealed[i + 1 :] for i in range(len(sealed))]
    for wrong in [*changed, *(sealed[:i] for i in range(len(sealed))), sealed + b"\0", b""]:
        with pytest.raises(Corrupt):
            KEY.open(wrong, PLACE)


@pytest.mark.parametrize(
    "place",
    [Place("ten-x", "own-b", "ver-c"), Place("ten-a", "own-x", "ver-c"), Place("ten-a", "own-b", "x")],
)
def test_an_envelope_opens_only_in_its_place(place):
    with pytest.raises(Corrupt):
        KEY.open(seal(b"x"), place)


def test_places_that_read_the_same_joined_are_bound_apart():
    assert Place("a", "bc", "d").associated(b"") != Place("ab", "c", "d").associated(b"")


def test_another_installations_key_opens_nothing():
    with pytest.raises(Corrupt):
        MasterKey(os.urandom(32)).open(seal(b"x"), PLACE)


@pytest.fixture
def blobs(tmp_path):
    return Blobs(LocalFiles(tmp_path / "blobs"), KEY)


def test_a_file_is_private_and_holds_no_plaintext(blobs, tmp_path):
    digest = blobs.put(PLACE, b"kingfisher")
    path = tmp_path / "blobs/ten-a/own-b/ver-c"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert b"kingfisher" not in path.read_bytes()
    assert blobs.read(PLACE, digest) == b"kingfisher"


def test_an_older_file_put_in_place_of_a_newer_one_is_refused(blobs):
    blobs.put(PLACE, b"old")
    old = (blobs.files.root / "ten-a/own-b/ver-c").read_bytes()
    digest = blobs.put(PLACE, b"new")
    (blobs.files.root / "ten-a/own-b/ver-c").write_bytes(old)
    with pytest.raises(Corrupt):
        blobs.read(PLACE, digest)


def test_an_aborted_write_leaves_nothing(blobs, tmp_path):
    writer = blobs.writer(PLACE)
    writer.write(b"half")
    writer.abort()
    writer.abort()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_full_disk_leaves_nothing(tmp_path):
    ended = multiprocessing.get_context("spawn").Process(target=_write_on_a_full_disk, args=(tmp_path,))
    ended.start()
    ended.join(120)
    assert ended.exitcode == 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def _write_on_a_full_disk(folder):
    import resource  # noqa: PLC0415 - only the child
    import signal  # noqa: PLC0415

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
    with pytest.raises(Unavailable, match="files cannot be written now"):
        Blobs(LocalFiles(folder / "blobs"), KEY).put(PLACE, bytes(5000))


@pytest.mark.parametrize("name", ["..", "../x", "a/b", "", ".", "a\0b", "tmp/../x", "-x"])
def test_no_id_leads_out_of_the_folder(blobs, name):
    for place in (Place(name, "o", "x"), Place("t", name, "x"), Place("t", "o", name)):
        with pytest.raises(ValueError, match="file name"):
            blobs.put(place, b"x")


def test_drafts_of_killed_processes_are_swept_once_old(blobs):
    killed = blobs.writer(PLACE)
    killed.write(b"x")
    blobs.sweep_drafts(older_than=60)
    (left,) = [path for path in (blobs.files.root / "tmp").rglob("*") if path.is_file()]
    blobs.sweep_drafts(older_than=-1)
    assert not left.exists()
    killed.abort()


def test_drafts_of_killed_processes_go_with_their_owner(blobs):
    killed = blobs.writer(PLACE)
    killed.write(b"x" * 100_000)
    blobs.delete_owner(PLACE.tenant_id, PLACE.owner_id)
    assert [path for path in blobs.files.root.rglob("*") if path.is_file()] == []
    killed.abort()


def test_a_file_is_moved_to_another_place_before_it_is_visible(blobs):
    text, elsewhere = b"kingfisher" * 20_000, Place(PLACE.tenant_id, PLACE.owner_id, "file-elsewhere")
    writer = blobs.writer(PLACE)
    writer.write(text)
    with writer._draft._file:  # as far as a commit comes that is not answered
        writer._draft.write(writer._sealer.finish())
        moved = blobs.moved(writer, elsewhere)
    assert blobs.read(elsewhere, moved.commit()) == text
    assert (moved.size, moved.place) == (len(text), elsewhere)
    assert {path.name for path in blobs.files.root.rglob("*") if path.is_file()} == {"file-elsewhere"}


def test_secrets_are_made_once_private_and_beside_the_data(tmp_path):
    first, second = open_secrets(tmp_path, None), open_secrets(tmp_path, None)
    assert first == second
    folder = tmp_path / "secrets"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name for path in folder.iterdir()} == {"admin_key", "master_key", "pepper"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_secrets_are_on_the_disk_with_their_folder_before_anything_is_sealed_with_them(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def counted(handle):
        synced.append((os.fstat(handle).st_ino, {path.name for path in (tmp_path / "new").rglob("*_key")}))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", counted)
    open_secrets(tmp_path / "new", None)
    folder = tmp_path / "new" / "secrets"
    of = [names for inode, names in synced if inode == folder.stat().st_ino]
    assert of == [{"admin_key"}, {"admin_key", "master_key"}, {"admin_key", "master_key"}]
    assert {path.stat().st_ino for path in (tmp_path, folder.parent)} <= {inode for inode, _ in synced}
    synced.clear()
    open_secrets(tmp_path / "new", None)
    assert synced == []


def test_processes_that_start_at_once_agree_on_the_secrets(tmp_path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(4) as pool:
        found = pool.starmap(open_secrets, [(tmp_path, None)] * 24)
    assert len(set(found)) == 1


def test_a_given_admin_key_is_taken_and_not_written(tmp_path):
    assert open_secrets(tmp_path, SecretStr("0123456789abcdef")).admin_key == "0123456789abcdef"
    assert not (tmp_path / "secrets/admin_key").exists()


def test_a_short_admin_key_is_refused_without_being_shown(tmp_path):
    with pytest.raises(StoreError, match="16 characters") as caught:
        open_secrets(tmp_path, SecretStr("hunter2"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "xyz", "ab"])
def test_a_damaged_key_file_stops_the_start(tmp_path, text):
    open_secrets(tmp_path, None)
    (tmp_path / "secrets/master_key").write_text(text)
    with pytest.raises(StoreError, match="restore it"):
        open_secrets(tmp_path, None)


def test_settings_come_from_the_environment_and_hide_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFIX_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("PREFIX_DATABASE_URL", "postgresql://db/x")
    monkeypatch.setenv("PREFIX_ADMIN_KEY", "0123456789abcdef")
    monkeypatch.setenv("PREFIX_MAX_UPLOAD_BYTES", "1000")
    settings = StoreSettings()
    assert (settings.data_dir, settings.max_upload_bytes) == (tmp_path, 1000)
    assert settings.url == "postgresql+psycopg://db/x"
    assert "0123456789abcdef" not in repr(settings)
