"""The secrets beside the data: admin key, master key, pepper. Made on first start, mode 0600.

They lie in `<data_dir>/secrets`, not in `<data_dir>/data`, so that a copy of the data opens nothing.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import SecretStr

from prefix_store.errors import StoreError
from prefix_store.local_files import make_folder, sync_folder

_SEALING: Final = ("master_key", "pepper")


@dataclass(frozen=True, slots=True)
class Keys:
    """What data is sealed with; never logged, never in an error."""

    master_key: bytes
    pepper: bytes


@dataclass(frozen=True, slots=True)
class Secrets(Keys):
    """Keys of this installation, its operator's too."""

    admin_key: str


def lacking(data_dir: Path) -> Path | None:
    """Which of the two keys is not there, where one of them is not."""
    paths = (data_dir / "secrets" / name for name in _SEALING)
    return next((path for path in paths if not path.exists()), None)


def require_secrets(data_dir: Path) -> None:
    """Make sure that an installation's secrets lie here, for what must not begin another.

    Raises:
        StoreError: there are none.
    """
    path = lacking(data_dir)
    if path is not None:
        raise StoreError(
            f"{path} is not there; name the data folder of the installation, or put its secrets in place"
        )


def open_secrets(data_dir: Path, given: SecretStr | None) -> Secrets:
    """Read the secrets, making those that are missing; safe when several processes start at once.

    Whether any may be made here is the database's to say (`Installation.allow_new_secrets`).

    Raises:
        StoreError: an admin key too short to be safe, or a damaged key file.
    """
    folder = data_dir / "secrets"
    make_folder(folder)
    folder.chmod(0o700)
    admin_key = given.get_secret_value() if given is not None else None
    if admin_key is not None and len(admin_key) < 16:
        raise StoreError("PREFIX_ADMIN_KEY is shorter than 16 characters; choose a longer one or unset it")
    admin = admin_key or _once(folder / "admin_key", "pfx_admin_" + secrets.token_urlsafe(32))
    for name in _SEALING:
        _once(folder / name, secrets.token_hex(32))
    keys = read_keys(data_dir)
    return Secrets(keys.master_key, keys.pepper, admin)


def read_keys(data_dir: Path) -> Keys:
    """Read what data is sealed with, making nothing.

    Raises:
        OSError: it is not there, or may not be read.
        StoreError: a damaged key file.
    """
    folder = data_dir / "secrets"
    try:
        master, pepper = (bytes.fromhex((folder / name).read_text().strip()) for name in _SEALING)
    except ValueError as error:
        raise StoreError(
            f"a key file in {folder} is damaged; restore it from where you keep your secrets"
        ) from error
    if len(master) != 32 or len(pepper) != 32:
        raise StoreError(
            f"a key file in {folder} has the wrong length; restore it from where you keep your secrets"
        )
    return Keys(master, pepper)


def _once(path: Path, value: str) -> str:
    """Write `value` to `path` unless it exists, atomically; return what the file holds."""
    if not path.exists():
        draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(value + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(draft)  # fails if another process was first; then its value holds
        except FileExistsError:
            pass
        finally:
            draft.unlink()
        # Also where another process was first: what is sealed with the value must not outlive it.
        sync_folder(path.parent)
    return path.read_text().strip()
