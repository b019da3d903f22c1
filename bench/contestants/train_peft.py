"""PEFT's prefix tuning with its MLP, in the loop that its documents show: the model, the loss, AdamW."""

from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model

from bench.contestant import Stopwatch, serve
from bench.contestants import peak, transformers_model

POSITIONS, HIDDEN = 10, 512


class Peft:
    """One job; dropout as the model has it in train mode, or off."""

    def load(self, folder: str, device: str) -> None:
        """Load the model."""
        self._model = transformers_model.load(folder, device)
        for parameter in self._model.parameters():
            parameter.sum()  # the file is mapped: what is not read is not resident, and would count later
        torch.set_grad_enabled(True)
        self._peft: Any = None

    def train(self, rows: int, tokens: int, *, dropout: bool) -> dict[str, Any]:
        """One update on `rows` rows of `tokens` tokens, all of which carry loss but the first."""
        if self._peft is None:
            self._before = peak.reset(self._model.device)
            self._begin(rows, tokens)
        self._peft.train(dropout)
        peak.reset(self._model.device)
        watch = Stopwatch()
        loss = self._peft(
            input_ids=self._ids, attention_mask=torch.ones_like(self._ids), labels=self._ids
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._peft.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        seen = float(loss.detach())  # which also waits for an accelerator
        return {
            "seconds": watch(),
            "memory": peak.highest(self._model.device) - self._before,
            "losses": [seen],
        }

    def _begin(self, rows: int, tokens: int) -> None:
        torch.manual_seed(0)
        config = PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=POSITIONS,
            prefix_projection=True,
            encoder_hidden_size=HIDDEN,
        )
        self._peft = get_peft_model(self._model, config).to(self._model.device)
        self._optimizer = torch.optim.AdamW([p for p in self._peft.parameters() if p.requires_grad], lr=1e-3)
        self._ids = torch.randint(self._model.config.vocab_size, (rows, tokens), device=self._model.device)


if __name__ == "__main__":
    serve(Peft())
