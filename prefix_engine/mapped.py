"""The weights of a base as a read-only mapping of a file: all processes of a machine share one copy of them.

A checkpoint in float32 is mapped as it lies. One in another format, such as the carried base, is unpacked once
for the machine, into a file of `cache_folder` that is named by the checkpoint's SHA-256. Nothing can write to the
mapping: a process that tried would end, and no other would see a changed base.
"""

import hashlib
import json
import logging
import math
import mmap
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prefix_engine.cache_folder import cache_folder, is_own, making

log = logging.getLogger(__name__)


class Mapping:
    """A safetensors file in memory, read-only.

    Raises:
        OSError: it cannot be opened.
        SafetensorError, ValueError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, "pt"):  # looks whether the header and the file agree
            pass
        with path.open("rb") as file:
            self._memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._begin = 8 + int.from_bytes(self._memory[:8], "little")
        self._header: dict[str, Any] = json.loads(self._memory[8 : self._begin])

    def tensor(self, name: str) -> Tensor | None:
        """A tensor by name, as a view; None if there is none, or not in float32 and where a float32 may lie."""
        told = self._header.get(name)
        if told is None or told["dtype"] != "F32":
            return None
        start, stop = (self._begin + place for place in told["data_offsets"])
        count = math.prod(told["shape"])
        if not count or start % 4 or stop - start != 4 * count or not 0 < stop <= len(self._memory):
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it to be
            found = torch.frombuffer(self._memory, dtype=torch.float32, count=count, offset=start)
        return found.view(told["shape"])

    def tensors(self, names: Collection[str]) -> dict[str, Tensor] | None:
        """All of these; None if one of them is no view, see `tensor`."""
        found = {name: tensor for name in names if (tensor := self.tensor(name)) is not None}
        return found if len(found) == len(names) else None

    def release(self) -> None:
        """Give back what this process has touched of it; what is read again comes from the system's cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


def map_weights(path: Path, names: Collection[str]) -> tuple[dict[str, Tensor], Mapping | None]:
    """Weights of a safetensors file as views of it, or of a copy of it that was unpacked to float32.

    Args:
        path: of the file.
        names: of the weights, all of which it has.

    Returns:
        The tensors by name, and the mapping that they lie in: None, and they are this process's own, where the copy
        cannot be written, of which the log says why.

    Raises:
        OSError, ValueError, RuntimeError, SafetensorError: the file is damaged.
    """
    mapping = Mapping(path)
    found = mapping.tensors(names)
    if found is not None:
        return found, mapping
    with safe_open(path, "pt") as file:
        loaded = {name: file.get_tensor(name).float() for name in names}
    try:
        for copy in _copies(path, loaded):
            mapped = _mapped(copy, loaded)
            if mapped is not None:
                return mapped
        why = f"{copy} holds other weights"
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # no home, room, or right to write
        why = str(error)
    log.warning("base.not_shared why=%s", why)
    return loaded, None


def _copies(source: Path, loaded: dict[str, Tensor]) -> Iterator[Path]:
    """The unpacked copy of a checkpoint if there is one, and then one made anew.

    Who maps a copy that is replaced reads that one on.
    """
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    copy = cache_folder() / f"base-{digest[:32]}.safetensors"
    if copy.is_file() and is_own(copy):
        yield copy
    with making(copy) as made:
        save_file({name: tensor.contiguous() for name, tensor in loaded.items()}, made)
    yield copy


def _mapped(copy: Path, loaded: dict[str, Tensor]) -> tuple[dict[str, Tensor], Mapping] | None:
    """A copy's tensors, if they are the numbers that were loaded; half a file's are not."""
    try:
        mapping = Mapping(copy)
        found = mapping.tensors(loaded)
    except (OSError, ValueError, RuntimeError, SafetensorError):
        return None
    if found is None or not all(torch.equal(found[name], loaded[name]) for name in loaded):
        return None
    return found, mapping
