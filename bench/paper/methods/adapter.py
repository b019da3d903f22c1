"""Adapters (Houlsby et al. 2019), placed as Lin et al. (2020) do for GPT-2: one behind each block.

`h + up(relu(down(layer_norm(h))))`, with `up` at zero to begin with, so that the first model is the base.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bench.paper.host import Host
from bench.paper.methods.method import Method
from bench.paper.reading import Context, read


class Bottleneck(nn.Module):
    """One adapter of a block: layer norm, down to `size`, relu, up to `width`."""

    def __init__(self, width: int, size: int, generator: torch.Generator) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.down, self.up = nn.Linear(width, size), nn.Linear(size, width)
        with torch.no_grad():
            self.down.weight.copy_(torch.randn(size, width, generator=generator) / width**0.5)
            for zero in (self.down.bias, self.up.weight, self.up.bias):
                zero.zero_()

    def forward(self, hidden: Tensor) -> Tensor:
        """Hidden states `[..., width]`, changed a little."""
        changed: Tensor = hidden + self.up(torch.relu(self.down(self.norm(hidden))))
        return changed


class Adapter(Method):
    """Adapters behind all blocks, of about `share` of the base's parameters together."""

    def __init__(self, host: Host, share: float, seed: int) -> None:
        super().__init__(host)
        self.model = host.shell()
        width, blocks = self.model.config.n_embd, self.model.transformer.h
        self.size = bottleneck(host.size, len(blocks), width, share)
        generator = torch.Generator().manual_seed(seed)
        for place, block in enumerate(blocks):
            adapter = Bottleneck(width, self.size, generator).to(host.device)
            block.register_forward_hook(lambda _block, _given, out, adapter=adapter: adapter(out))
            for name, weight in adapter.named_parameters():
                self.kept[f"{place}.{name}"] = weight

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`."""
        return read(self.model, prompts)


def bottleneck(parameters: int, blocks: int, width: int, share: float) -> int:
    """The widest bottleneck whose adapters have at most this share of the base's parameters; 1 at least."""
    room = share * parameters / blocks - 3 * width  # the layer norm and the upper bias are there anyhow
    return max(1, int(room // (2 * width + 1)))
