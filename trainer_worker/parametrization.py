"""What the optimiser moves: keys and values directly, or an MLP that makes them (Li & Liang 2021, 4.3).

Only the keys and values are kept when training ends; the MLP is thrown away.
"""

import math
from typing import Protocol

import torch
from torch import Tensor

MID = 512  # hidden width of the paper's code for GPT-2
_SMALLEST = 0.05  # of the largest singular value: what is below is not fitted
_ROUNDING = 1e-4


class Parametrization(Protocol):
    """Named parameters and the prefix `[layers, 2, heads, m, head_dim]` that they stand for."""

    parameters: dict[str, Tensor]

    def prefix(self) -> Tensor:
        """The prefix, differentiable in the parameters."""
        ...


class Direct:
    """The keys and values themselves."""

    def __init__(self, values: Tensor) -> None:
        self.parameters = {"prefix": values.clone(memory_format=torch.contiguous_format).requires_grad_()}

    def prefix(self) -> Tensor:
        """See `Parametrization`."""
        return self.parameters["prefix"]


class Mlp:
    """`Embedding(m, width) -> Linear(width, 512) -> tanh -> Linear(512, layers * 2 * width)`.

    `shape` is the prefix's; one row of the output holds one position's keys and values of all layers.
    """

    def __init__(self, shape: torch.Size, generator: torch.Generator, device: torch.device) -> None:
        layers, _, heads, m, head_dim = shape
        width = heads * head_dim
        self._shape = (m, layers, 2, heads, head_dim)

        def drawn(*size: int, spread: float) -> Tensor:
            return (torch.randn(*size, generator=generator) * spread).to(device)

        self.parameters = {
            "embedding": drawn(m, width, spread=1.0),
            "hidden_weight": drawn(width, MID, spread=1.0 / math.sqrt(width)),
            "hidden_bias": torch.zeros(MID, device=device),
            "out_weight": drawn(MID, layers * 2 * width, spread=1.0 / math.sqrt(3 * MID)),
            "out_bias": torch.zeros(layers * 2 * width, device=device),
        }
        for parameter in self.parameters.values():
            parameter.requires_grad_()
        self._rest: Tensor | None = None

    def prefix(self) -> Tensor:
        """See `Parametrization`."""
        own = self.parameters
        flat = torch.addmm(own["out_bias"], self._features(), own["out_weight"])
        if self._rest is not None:
            flat = flat + self._rest
        return flat.view(self._shape).permute(1, 2, 3, 0, 4)

    def fit(self, values: Tensor) -> float:
        """Make the output equal these values; return the largest difference that is left.

        The paper's code fits by 500 steps of Adam; here the output layer alone is solved for: with at least
        as many hidden units as positions the smallest change that fits is exact up to rounding. Directions in
        which the features hardly differ (there are some once the positions come near the hidden width) are
        left out, since weights as large as those would make the first update leap; what they would have
        fitted is added as a constant, as it is all along in P = words + MLP.
        """
        wanted = values.permute(3, 0, 1, 2, 4).reshape(values.shape[3], -1).double()
        with torch.no_grad():
            weight, bias = self.parameters["out_weight"], self.parameters["out_bias"]
            features = self._features().double()
            rest = wanted - (features @ weight.double() + bias.double())
            weight += (torch.linalg.pinv(features, rtol=_SMALLEST) @ rest).to(weight.dtype)
            left = values - self.prefix()
            if float(left.abs().max()) > _ROUNDING:
                self._rest = left.permute(3, 0, 1, 2, 4).reshape(values.shape[3], -1)
            return float((self.prefix() - values).abs().max())

    def _features(self) -> Tensor:
        own = self.parameters
        return torch.tanh(torch.addmm(own["hidden_bias"], own["embedding"], own["hidden_weight"]))
