"""What a backup holds, sealed with the pepper: checksums, counts, schema, and how far the ledger was. Ids alone."""

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from prefix_store.errors import StoreError

NAME: Final = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Manifest:
    """One backup.

    Attributes:
        id: of the backup; the ledger tells it too.
        made_at: seconds since the epoch, by the database's clock.
        dialect: `sqlite` or `postgresql`.
        revision: of the schema.
        database: SHA-256 of the database's copy, in hex.
        rows: count of each table's rows.
        files: SHA-256 in hex of each sealed file as it lies, by `<tenant>/<owner>/<object>`.
        missing: files that rows name and that were not there; of checkpoints none is told, since a run does without.
        key_id: which master key opens the files.
        ledger: the seal of the ledger's entry that tells this backup.
    """

    id: str
    made_at: float
    dialect: str
    revision: str
    database: str
    rows: dict[str, int]
    files: dict[str, str]
    missing: list[str]
    key_id: str
    ledger: str
    format: int = _FORMAT
    mac: str = ""

    def write(self, folder: Path, pepper: bytes) -> None:
        """Seal and write; a folder without it is no backup, so it comes last."""
        sealed = replace(self, mac=_mac(self, pepper))
        (folder / NAME).write_text(json.dumps(asdict(sealed), indent=1) + "\n")


def read_manifest(folder: Path, pepper: bytes, key_id: bytes) -> Manifest:
    """Return a folder's manifest.

    Raises:
        StoreError: none, changed, or of an installation with other secrets.
    """
    try:
        told = json.loads((folder / NAME).read_bytes())
        manifest = Manifest(**told)
    except FileNotFoundError:
        raise StoreError(f"{folder} holds no {NAME}: no backup, or one that was cut short") from None
    except (ValueError, TypeError):
        raise StoreError(f"{NAME} in {folder} cannot be read; take another backup") from None
    if manifest.format != _FORMAT:
        raise StoreError(f"{NAME} in {folder} has format {manifest.format}; this code reads {_FORMAT}")
    if manifest.key_id != key_id.hex():
        raise StoreError("the backup was made with another master key; put the secrets of its time in place")
    if not hmac.compare_digest(_mac(manifest, pepper).encode(), manifest.mac.encode()):
        raise StoreError(f"{NAME} in {folder} was changed, or made with another pepper")
    return manifest


def _mac(manifest: Manifest, pepper: bytes) -> str:
    told = asdict(manifest)
    del told["mac"]
    key = hashlib.sha256(b"prefixserve backup" + pepper).digest()
    return hmac.new(key, json.dumps(told, sort_keys=True).encode(), hashlib.sha256).hexdigest()
