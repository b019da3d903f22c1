"""Every line that only a CUDA device runs: pinned copies, recorded graphs, float32 sums of bfloat16 products.

Whoever calls these runs on a CPU too, by the plain branch that each of them has, so that all that stands
around them is tested without a GPU. What is chosen here and why: docs/performance.md, "On a GPU".
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_WARM_UPS = 2  # runs before a recording, in which libraries make their handles and workspaces


def exact() -> None:
    """Keep float32 products in float32 (no TF32) and sums of bfloat16 ones too; holds for the whole process."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device, in one copy out of pinned memory that the host does not wait for."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)  # torch frees the pinned copy once it was read


def product(x: Tensor, weight: Tensor) -> Tensor:
    """bfloat16 `x [n, in]` times bfloat16 `weight [in, out]`, summed and given out in float32 `[n, out]`."""
    if x.device.type == "cpu":
        return x.float() @ weight.float()  # a product of two bfloat16 numbers is exact in float32
    return torch.mm(x, weight, out_dtype=torch.float32)


class Courier:
    """Takes one prefix after another to the device.

    torch frees pinned memory, and memory of the device, as it is. So the pinned side is one buffer, which the next
    prefix overwrites and `settle` zeroes, and the copy on the device is zeroed once it was read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        self._pinned = torch.empty(0, dtype=torch.float32)

    @contextmanager
    def lent(self, tensor: Tensor) -> Iterator[Tensor]:
        """A float32 tensor of the CPU, on the device; the tensor itself where that is the CPU."""
        if self._device is None:
            yield tensor
            return
        torch.cuda.synchronize(self._device)  # the copy before this one may still be reading the pinned side
        if len(self._pinned) < tensor.numel():
            self._pinned.zero_()
            self._pinned = torch.empty(tensor.numel(), dtype=torch.float32, pin_memory=True)
        host = self._pinned[: tensor.numel()].view(tensor.shape)
        there = host.copy_(tensor).to(self._device, non_blocking=True)
        try:
            yield there
        finally:
            there.zero_()  # behind the reads, on the same stream

    def settle(self) -> None:
        """Wait for all that the device was told, and zero the pinned side."""
        if self._device is not None:
            torch.cuda.synchronize(self._device)
            self._pinned.zero_()


class Staging:
    """Integers that go to the device every step, to the same address, in one copy."""

    def __init__(self, size: int, device: torch.device) -> None:
        cuda = device.type == "cuda"
        self.device = torch.zeros(size, dtype=torch.int64, device=device)
        self._host = torch.zeros(size, dtype=torch.int64, pin_memory=cuda)
        self._sent = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]

    def send(self, numbers: list[int]) -> None:
        """Overwrite the first ones on the device, behind what it is doing."""
        if self._sent is not None:
            self._sent.synchronize()  # the copy before this one may still be reading the host's side
        host = self._host[: len(numbers)]
        host.copy_(torch.tensor(numbers))
        self.device[: len(numbers)].copy_(host, non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(self.device.device))


class Recorder:
    """Makes CUDA graphs of functions that work on fixed addresses.

    The graphs share one pool of memory, so they may only run one after another, and what one leaves in
    memory of its own is gone once the next has run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device if device.type == "cuda" else None
        if self._device is not None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            self._pool = torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], None]) -> Callable[[], None]:
        """What does the same as `run`, in one launch; `run` itself on a CPU.

        `run` is called a few times, so that calling it twice has to be the same as calling it once.
        """
        if self._device is None:
            return run
        device = self._device
        with torch.cuda.device(device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    run()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Threads that load prefixes may touch CUDA meanwhile: that is no error of this recording.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                run()

        def replay() -> None:
            with torch.cuda.device(device):
                graph.replay()

        return replay
