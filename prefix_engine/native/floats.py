"""The numbers that the compiled kernels read and write: float32 on the CPU, whatever torch's defaults are."""

from functools import partial

import torch
from torch import Tensor

floats = partial(torch.empty, dtype=torch.float32, device="cpu")


def float32(tensor: Tensor) -> Tensor:
    """The tensor itself.

    Raises:
        TypeError: it is in another format, or elsewhere: the kernels would read beyond its end.
    """
    if tensor.dtype is not torch.float32 or tensor.device.type != "cpu":
        raise TypeError(f"the native kernels read float32 on a CPU, not {tensor.dtype} on {tensor.device}")
    return tensor
