"""torch's Muon with its orthogonalisation in float32: torch does it in bfloat16, which most CPUs only emulate."""

import math

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """As `torch.optim.Muon` with `adjust_lr_fn="match_rms_adamw"`: momentum, Nesterov, decoupled decay."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002 - the base class has it
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                held = state["momentum_buffer"].lerp_(weight.grad, 1 - group["momentum"])
                update = orthogonal(
                    weight.grad.lerp(held, group["momentum"]), group["ns_coefficients"], group["ns_steps"]
                )
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update, alpha=-group["lr"] * 0.2 * math.sqrt(max(weight.shape)))


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The nearest matrix with singular values near 1, by Newton-Schulz (kellerjordan.github.io/posts/muon)."""
    a, b, c = coefficients
    flat = matrix.shape[0] <= matrix.shape[1]
    found = matrix if flat else matrix.T
    found = found / found.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = found @ found.T
        found = torch.addmm(found, torch.addmm(gram, gram, gram, beta=b, alpha=c), found, beta=a)
    return found if flat else found.T
