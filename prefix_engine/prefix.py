"""One prefix: trained keys and values for every layer, and the rule where its text starts.

Bytes are safetensors, never pickle. Shapes, base and values are checked here on the way in; who owns a
prefix and where its bytes lie is known elsewhere.
"""

import json
import math
from dataclasses import dataclass
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from prefix_engine.base import Base

FORMAT = "prefixserve-prefix-1"
LONGEST = 512
_HEADER_BYTES = 8
_HEADER_CAP = 1 << 20


class PrefixError(Exception):
    """A tensor file that cannot be served; `code` says why, the message names the mend."""

    def __init__(self, code: Literal["format", "shape", "base_mismatch", "non_finite"], message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True, eq=False)
class Prefix:
    """Trained keys and values.

    Attributes:
        tensor: `[layers, 2, heads, m, head_dim]`, float32; index 0 of the second axis are the keys.
        position_offset: where text starts: m (Li & Liang 2021, PEFT) or 0 (costs no position of the base;
            GPT-2 adds positions at its input only, so keys and values of a prefix carry none).
        base_fingerprint: fingerprint of the base that it was trained on.
    """

    tensor: Tensor
    position_offset: int
    base_fingerprint: str

    @property
    def m(self) -> int:
        """Number of positions."""
        return int(self.tensor.shape[3])

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(self.tensor.numel() * self.tensor.element_size())

    def check(self, base: Base) -> None:
        """Refuse a prefix that this base cannot serve.

        Raises:
            PrefixError: wrong base, shape, dtype, offset, or values that are not finite.
        """
        config = base.config
        if self.base_fingerprint != base.fingerprint:
            raise PrefixError(
                "base_mismatch",
                f"trained for base {self.base_fingerprint[:12]}, this is {base.fingerprint[:12]}; train it again here",
            )
        want = (config.layers, 2, config.heads, self.m if self.tensor.dim() == 5 else -1, config.head_dim)
        if tuple(self.tensor.shape) != want or not 1 <= self.m <= LONGEST:
            raise PrefixError(
                "shape",
                f"expected [{config.layers}, 2, {config.heads}, 1..{LONGEST}, {config.head_dim}], got {list(self.tensor.shape)}",
            )
        if self.tensor.dtype != torch.float32 or self.position_offset not in (0, self.m):
            raise PrefixError("format", "expected float32 and a position_offset of 0 or m")
        # Layer by layer: for more, torch would start threads of its own beside each thread that loads. A sum is
        # finite only where all are, and ten times as fast; where it is not, finite numbers may have overflowed.
        if not all(
            math.isfinite(layer.sum()) or bool(torch.isfinite(layer).all()) for layer in self.tensor.detach()
        ):
            raise PrefixError("non_finite", "the tensor holds NaN or infinity")

    def to_bytes(self) -> bytes:
        """Return the safetensors file of this prefix."""
        metadata = {
            "format": FORMAT,
            "position_offset": json.dumps(self.position_offset),
            "base_fingerprint": self.base_fingerprint,
        }
        data: bytes = save({"prefix": self.tensor.detach().to("cpu", torch.float32).contiguous()}, metadata)
        return _sorted_header(data)

    @staticmethod
    def from_bytes(data: bytes, base: Base) -> "Prefix":
        """Read and check a file made by `to_bytes`.

        Raises:
            PrefixError: not such a file, or a prefix that `base` cannot serve.
        """
        try:
            metadata = _metadata(data)
            tensors: dict[str, Tensor] = load(data)
            offset = int(json.loads(metadata["position_offset"]))
            fingerprint = metadata["base_fingerprint"]
            tensor = tensors.pop("prefix")
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            raise PrefixError("format", "not a prefix file (safetensors with its metadata)") from error
        if metadata.get("format") != FORMAT or tensors or tensor.dim() != 5:
            raise PrefixError("format", f"expected one tensor 'prefix' of 5 axes and format {FORMAT}")
        prefix = Prefix(tensor, offset, fingerprint)
        prefix.check(base)
        return prefix

    def to_peft(self) -> Tensor:
        """Return PEFT's `prompt_embeddings` `[m, layers * 2 * width]`: layer0-K, layer0-V, layer1-K, ..."""
        return self.tensor.permute(3, 0, 1, 2, 4).reshape(self.m, -1).contiguous()

    @staticmethod
    def from_peft(prompt_embeddings: Tensor, base: Base) -> "Prefix":
        """Take PEFT's `prompt_embeddings` `[m, layers * 2 * width]` over; its text starts at m.

        Raises:
            PrefixError: a shape that does not fit `base`, or values that are not finite.
        """
        config = base.config
        if prompt_embeddings.dim() != 2 or prompt_embeddings.shape[1] != config.layers * 2 * config.width:
            raise PrefixError("shape", f"expected [m, {config.layers * 2 * config.width}]")
        m = prompt_embeddings.shape[0]
        tensor = prompt_embeddings.view(m, config.layers, 2, config.heads, config.head_dim)
        prefix = Prefix(tensor.permute(1, 2, 3, 0, 4).float().contiguous(), m, base.fingerprint)
        prefix.check(base)
        return prefix


def _sorted_header(data: bytes) -> bytes:
    """The same file, its header in an order of its own: the library's changes from call to call."""
    size = int.from_bytes(data[:_HEADER_BYTES], "little")
    header = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + size])
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    return data[:_HEADER_BYTES] + text.ljust(size) + data[_HEADER_BYTES + size :]


def _metadata(data: bytes) -> dict[str, str]:
    """Header metadata of a safetensors file; the library's `load` drops it."""
    size = int.from_bytes(data[:_HEADER_BYTES], "little")
    if not 2 <= size <= min(_HEADER_CAP, len(data) - _HEADER_BYTES):
        raise ValueError("header size")
    metadata = json.loads(data[_HEADER_BYTES : _HEADER_BYTES + size]).get("__metadata__")
    if not isinstance(metadata, dict):
        raise TypeError("no metadata")
    return metadata
