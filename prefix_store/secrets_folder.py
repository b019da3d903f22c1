"""The secrets beside the data: admin key, master key, pepper. Made on first start, mode 0600.

They lie in `<data_dir>/secrets`, not in `<data_dir>/data`, so that a copy of the data opens nothing.
"""

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from prefix_store.errors import StoreError


@dataclass(frozen=True, slots=True)
class Secrets:
    """Keys of this installation; never logged, never in an error."""

    admin_key: str
    master_key: bytes
    pepper: bytes


def require_secrets(data_dir: Path) -> None:
    """Make sure that an installation's secrets lie here, for what must not begin another.

    Raises:
        StoreError: there are none.
    """
    for name in ("master_key", "pepper"):
        if not (data_dir / "secrets" / name).exists():
            raise StoreError(
                f"{data_dir / 'secrets' / name} is not there; name the data folder of the installation, or put its"
                " secrets in place"
            )


def open_secrets(data_dir: Path, given: SecretStr | None) -> Secrets:
    """Read the secrets, making those that are missing; safe when several processes start at once.

    Raises:
        StoreError: an admin key too short to be safe, or a damaged key file.
    """
    folder = data_dir / "secrets"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    admin_key = given.get_secret_value() if given is not None else None
    if admin_key is not None and len(admin_key) < 16:
        raise StoreError("PREFIX_ADMIN_KEY is shorter than 16 characters; choose a longer one or unset it")
    admin = admin_key or _once(folder / "admin_key", "pfx_admin_" + secrets.token_urlsafe(32))
    try:
        master = bytes.fromhex(_once(folder / "master_key", secrets.token_hex(32)))
        pepper = bytes.fromhex(_once(folder / "pepper", secrets.token_hex(32)))
    except ValueError as error:
        raise StoreError(
            f"a key file in {folder} is damaged; restore it from where you keep your secrets"
        ) from error
    if len(master) != 32 or len(pepper) != 32:
        raise StoreError(
            f"a key file in {folder} has the wrong length; restore it from where you keep your secrets"
        )
    return Secrets(admin, master, pepper)


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
    return path.read_text().strip()
