"""AdamW (Loshchilov & Hutter 2019, algorithm 2) over a prefix's parameters, without torch's class for it.

The numbers are those of `torch.optim.AdamW(..., fused=True)`, whose kernel this calls. But the first use of that class
imports torch's compiler, which nothing here needs: 3 s of a processor and 75 MB in each training process.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's and the paper's


@dataclass(slots=True)
class Moments:
    """Of one parameter: running means of its gradient and of the gradient's square, and how many steps they are of."""

    first: Tensor
    second: Tensor
    steps: Tensor  # one number in float32, as the kernel takes it


class AdamW:
    """Moves parameters by their gradients; `moments` has those that were moved, by parameter."""

    def __init__(self, parameters: Iterable[Tensor], weight_decay: float) -> None:
        self._parameters = tuple(parameters)
        self._weight_decay = weight_decay
        self.moments: dict[Tensor, Moments] = {}

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move each parameter that has a gradient, by this learning rate."""
        pairs = [(one, gradient) for one in self._parameters if (gradient := one.grad) is not None]
        if not pairs:
            return
        moments = [self._moments_of(parameter) for parameter, _ in pairs]
        for one in moments:
            one.steps += 1
        # torch has no public name for its kernel.
        torch._fused_adamw_(
            [parameter for parameter, _ in pairs],
            [gradient for _, gradient in pairs],
            [one.first for one in moments],
            [one.second for one in moments],
            [],
            [one.steps for one in moments],
            lr=rate,
            beta1=BETAS[0],
            beta2=BETAS[1],
            weight_decay=self._weight_decay,
            eps=EPSILON,
            amsgrad=False,
            maximize=False,
        )

    def forget_gradients(self) -> None:
        """As if none had been computed."""
        for parameter in self._parameters:
            parameter.grad = None

    def _moments_of(self, parameter: Tensor) -> Moments:
        found = self.moments.get(parameter)
        if found is None:
            first, second = torch.zeros_like(parameter), torch.zeros_like(parameter)
            found = Moments(first, second, torch.zeros((), dtype=torch.float32, device=parameter.device))
            self.moments[parameter] = found
        return found
