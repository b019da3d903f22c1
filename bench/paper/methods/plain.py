"""The base alone, full fine-tuning, and fine-tuning of the top two blocks (FT-TOP2 of the paper, table 1)."""

from collections.abc import Sequence

from bench.paper.host import Host
from bench.paper.methods.method import Method
from bench.paper.reading import Context, read

TOP = 2


class Bare(Method):
    """The frozen base, nothing before the prompt."""

    def context(self, prompts: Sequence[Sequence[int]]) -> Context:
        """See `Method`."""
        return read(self.model, prompts)


class FineTuning(Bare):
    """Every weight is trained; dropout as the checkpoint's config says."""

    dropout = True

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.model = host.copy()
        self.kept = dict(self.model.named_parameters())


class TopTwo(Bare):
    """The last two blocks and the last layer norm are trained."""

    dropout = True

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.model = host.copy()
        blocks = self.model.config.n_layer
        top = tuple(f"transformer.h.{place}." for place in range(max(0, blocks - TOP), blocks))
        self.model.requires_grad_(False)
        for name, weight in self.model.named_parameters():
            if name.startswith((*top, "transformer.ln_f.")):
                self.kept[name] = weight.requires_grad_()
