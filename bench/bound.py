"""The lower bound of a decode step whose phases, matrices and attention, come one after the other. Plain arithmetic.

A phase takes what must be read over the measured bandwidth or what must be computed over the measured
peak, whichever is longer.
"""

from collections.abc import Iterable
from dataclasses import dataclass

WEIGHT_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}
KV_BYTES = {"fp32": 4, "bf16": 2}


@dataclass(frozen=True, slots=True)
class Machine:
    """What was measured of this machine in this run.

    Attributes:
        read: bytes a second, out of tensors that no cache holds.
        peak: operations a second of a large matrix product, by the format of the weights.
    """

    read: float
    peak: dict[str, float]


def matrix_weights(shape: dict[str, int]) -> int:
    """Weights that every step multiplies with: four matrices a block, and the head."""
    return 12 * shape["layers"] * shape["width"] ** 2 + shape["vocab"] * shape["width"]


def kv_values(shape: dict[str, int]) -> int:
    """Numbers that one cached position holds over all layers."""
    return 2 * shape["layers"] * shape["width"]


@dataclass(frozen=True, slots=True)
class Phase:
    """What one part of a step must read and compute.

    Attributes:
        bytes: that it reads.
        operations: that it computes.
        format: of its product, by which the peak is chosen.
    """

    bytes: float
    operations: float
    format: str = "fp32"

    def seconds(self, machine: Machine) -> float:
        """At the least: reading and computing go on at once."""
        return max(self.bytes / machine.read, self.operations / machine.peak[self.format])


def phases(
    shape: dict[str, int], rows: int, cached: float, weights: str = "fp32", kv: str = "fp32"
) -> tuple[Phase, Phase]:
    """The matrices and the attention of a decode step of `rows` rows.

    Args:
        shape: of the model.
        rows: of the batch, each with one token.
        cached: positions that a row attends to, its prefix included; the mean over the rows.
        weights: format of the matrices.
        kv: format of keys and values; they are multiplied in fp32.
    """
    matrices, mixed = matrix_weights(shape), rows * cached * kv_values(shape)
    return (
        Phase(matrices * WEIGHT_BYTES[weights], 2 * rows * matrices, weights),
        Phase(mixed * KV_BYTES[kv], 2 * mixed),
    )


def step_s(
    shape: dict[str, int], machine: Machine, rows: int, cached: float, weights: str = "fp32", kv: str = "fp32"
) -> float:
    """Seconds of a decode step whose phases are each as short as can be, one after the other; see `phases`."""
    return sum(phase.seconds(machine) for phase in phases(shape, rows, cached, weights, kv))


def overlapped_s(found: Iterable[Phase], machine: Machine) -> float:
    """Seconds if what all phases read and compute could go on at once: no step can be shorter."""
    found = tuple(found)
    reading = sum(phase.bytes for phase in found) / machine.read
    return max(reading, sum(phase.operations / machine.peak[phase.format] for phase in found))
