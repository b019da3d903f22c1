"""The sealed envelope of every stored file: AES-256-GCM bound to the place it was written for.

    magic "PFXS" | format 1 | key id [16] | nonce [12] | ciphertext | tag [16]

The associated data are the header and tenant, owner and object, each with its length, so a file moved to
another owner or renamed does not open. Sealing works on a stream; opening gives no byte before the tag holds.
"""

import hashlib
import os
import struct
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from prefix_store.errors import Corrupt

MAGIC = b"PFXS\x01"
_NONCE, _KEY_ID, _TAG = 12, 16, 16
HEADER = len(MAGIC) + _KEY_ID + _NONCE


@dataclass(frozen=True, slots=True)
class Place:
    """What a sealed file belongs to."""

    tenant_id: str
    owner_id: str
    object_id: str

    def associated(self, header: bytes) -> bytes:
        """Unambiguous bytes of header and place."""
        parts = [part.encode() for part in (self.tenant_id, self.owner_id, self.object_id)]
        return header + b"".join(struct.pack(">I", len(part)) + part for part in parts)


def key_id_of(sealed: bytes) -> bytes | None:
    """Id of the key that an envelope says it was sealed with; None if this is no envelope."""
    return sealed[len(MAGIC) : len(MAGIC) + _KEY_ID] if sealed.startswith(MAGIC) else None


class MasterKey:
    """One 256-bit key and its id, which every envelope names so that keys can be rotated."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.key_id = hashlib.sha256(b"prefixserve key id" + key).digest()[:_KEY_ID]

    def sealer(self, place: Place) -> "Sealer":
        """Begin an envelope for `place`."""
        return Sealer(self._key, self.key_id, place)

    def open(self, sealed: bytes, place: Place) -> bytes:
        """Return the plaintext of an envelope.

        Raises:
            Corrupt: not an envelope, another key, changed bytes, or written for another place.
        """
        header, nonce = sealed[:HEADER], sealed[HEADER - _NONCE : HEADER]
        if len(sealed) < HEADER + _TAG or header[: HEADER - _NONCE] != MAGIC + self.key_id:
            raise Corrupt("a stored file is no envelope of this installation's key")
        try:
            return AESGCM(self._key).decrypt(nonce, sealed[HEADER:], place.associated(header))
        except InvalidTag:
            raise Corrupt("a stored file fails its seal") from None


class Sealer:
    """Seals a stream: `header`, then `update` for each piece, then `finish`."""

    def __init__(self, key: bytes, key_id: bytes, place: Place) -> None:
        nonce = os.urandom(_NONCE)
        self.header = MAGIC + key_id + nonce
        self._gcm = Cipher(AES(key), GCM(nonce)).encryptor()
        self._gcm.authenticate_additional_data(place.associated(self.header))

    def update(self, piece: bytes) -> bytes:
        """Ciphertext of the next piece."""
        return self._gcm.update(piece)

    def finish(self) -> bytes:
        """The last ciphertext and the tag."""
        return self._gcm.finalize() + self._gcm.tag
