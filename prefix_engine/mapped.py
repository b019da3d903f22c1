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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prefix_engine.cache_folder import cache_folder, making

log = logging.getLogger(__name__)


class Mapping:
    """A safetensors file in memory, read-only.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no such file.
    """

    def __init__(self, path: Path) -> None:
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
        if start % 4 or stop - start != 4 * count or not 0 < stop <= len(self._memory):
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given buffer is not writable")  # nor is it to be
            found = torch.frombuffer(self._memory, dtype=torch.float32, count=count, offset=start)
        return found.view(told["shape"])

    def release(self) -> None:
        """Give back what this process has touched of it; what is read again comes from the system's cache."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._memory.madvise(mmap.MADV_DONTNEED)


def map_parameters(model: Any, place: str) -> Mapping | None:
    """Have a loaded model's parameters lie in a mapping of its file, or of an unpacked copy of it.

    Args:
        model: of transformers, in float32 on the CPU.
        place: that it was loaded from, see `checkpoint_of`.

    Returns:
        The mapping; None where the model keeps its own memory: the checkpoint is of several files, or the copy
        cannot be written or is not what was loaded. The log says why.
    """
    from transformers.utils.hub import cached_file  # noqa: PLC0415 - slow, and only needed here

    parameters = dict(model.named_parameters())
    try:
        source = Path(cached_file(place, "model.safetensors") or "")
        for path in _files(source, parameters):
            mapping = _mapped(path, parameters)
            if mapping is not None:
                return mapping
        why = f"{path} holds other weights"
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:  # no home, room, or right to write
        why = str(error)
    log.warning("base.not_shared why=%s", why)
    return None


def _files(source: Path, parameters: dict[str, Tensor]) -> Iterator[Path]:
    """The checkpoint as it lies, the unpacked copy of it if there is one, and at last a copy made anew.

    Who maps a copy that is replaced reads that one on.
    """
    yield source
    with source.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    copy = cache_folder() / f"base-{digest[:32]}.safetensors"
    if copy.is_file():
        yield copy
    with making(copy) as made:
        save_file({name: tensor.detach().contiguous() for name, tensor in parameters.items()}, made)
    yield copy


def _mapped(path: Path, parameters: dict[str, Any]) -> Mapping | None:
    """Put the parameters into a mapping of this file, if it holds the same numbers; half a file does not."""
    try:
        mapping = Mapping(path)
        tensors = {name: _found(mapping, name) for name in parameters}
    except (OSError, ValueError, RuntimeError):
        return None
    if not all(_equal(tensors[name], parameter) for name, parameter in parameters.items()):
        return None
    for name, parameter in parameters.items():
        parameter.data = tensors[name]
    return mapping


def _found(mapping: Mapping, name: str) -> Tensor | None:
    """Checkpoints of the body alone leave out its name."""
    found = mapping.tensor(name)
    return mapping.tensor(name.removeprefix("transformer.")) if found is None else found


def _equal(found: Tensor | None, loaded: Tensor) -> bool:
    return found is not None and torch.equal(found, loaded)
