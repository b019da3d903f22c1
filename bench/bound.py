"""The lower bound of a decode step: the sum of its phases, matrices and attention. Plain arithmetic.

A phase takes what must be read over the measured bandwidth or what must be computed over the measured
peak, whichever is longer.
"""

from dataclasses import dataclass

WEIGHT_BYTES = {"fp32": 4, "int8": 1}
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


def step_s(
    shape: dict[str, int], machine: Machine, rows: int, cached: float, weights: str = "fp32", kv: str = "fp32"
) -> float:
    """Seconds below which no decode step of `rows` rows can be.

    Args:
        shape: of the model.
        machine: measured.
        rows: of the batch, each with one token.
        cached: positions that a row attends to, its prefix included; the mean over the rows.
        weights: format of the matrices.
        kv: format of keys and values; they are multiplied in fp32.
    """
    matrices = matrix_weights(shape)
    products = max(
        matrices * WEIGHT_BYTES[weights] / machine.read, 2 * rows * matrices / machine.peak[weights]
    )
    mixed = rows * cached * kv_values(shape)
    return products + max(mixed * KV_BYTES[kv] / machine.read, 2 * mixed / machine.peak["fp32"])
