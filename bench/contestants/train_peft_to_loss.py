"""PEFT's prefix tuning as PEFT's guide trains it, looked at on rows that it does not know.

https://huggingface.co/docs/peft/task_guides/prompt_based_methods: PrefixTuningConfig with 20 virtual tokens and
no projection, batches of 16 in random order, AdamW at 3e-2 with torch's other settings, a linear schedule without
warm-up, the model in train mode. (Its notebook examples/causal_language_modeling/peft_prefix_tuning_clm.ipynb has
30 tokens and batches of 8, and the rest alike.) Rows are joined as that notebook joins them, labels of the prompt
masked and the end token behind the completion. In its favour, batches are padded to their own longest row where the
guide pads all to one length, and the weights are float32, in which this processor is fastest.
"""

from collections.abc import Sequence
from typing import Any

import torch
from peft import PrefixTuningConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import AutoTokenizer, DataCollatorForSeq2Seq, get_linear_schedule_with_warmup

from bench.contestant import serve
from bench.contestants import transformers_model
from bench.contestants.carried_rows import drawn
from bench.contestants.curve import Curve
from bench.losses import evaluation
from prefix_engine import load_base
from prefix_engine.checkpoint import folder_of
from trainer_worker.pieces import at_once
from trainer_worker.rows import Row, rows_of
from trainer_worker.split import split

TOKENS, RATE, BATCH = 20, 3e-2, 16
_SCORED_AT_ONCE = 32  # rows


class Peft:
    """The model is loaded anew for every run, so that none finds what another left."""

    def load(self, base: str, device: str) -> None:
        """Load the tokenizer; the base is there for its rows alone."""
        self._device = device
        self._place, self._base = folder_of(base), load_base(base, "cpu").emptied()
        self._tokenizer = AutoTokenizer.from_pretrained(self._place)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token_id = self._tokenizer.eos_token_id
        self._batched = DataCollatorForSeq2Seq(self._tokenizer, label_pad_token_id=-100)

    def train(
        self, dataset: str, examples: int, scored: int, seed: int, every: int, updates: int
    ) -> dict[str, Any]:
        """Train on the rows that the product trains on, those that it holds out left out.

        Returns:
            The curve, a look every so many updates and one at the end; tokens scored and rows trained on.
        """
        asked = [
            {
                "input_ids": list(row.tokens),
                "labels": [-100] * row.loss_from + list(row.tokens[row.loss_from :]),
            }
            for row in evaluation(self._base, dataset, most=scored)
        ]
        rows = at_once(rows_of([("training", drawn(dataset, examples, seed))]))
        rows = [rows[i] for i in split(rows).training]
        model = transformers_model.load(self._place, self._device)
        torch.set_grad_enabled(True)
        torch.manual_seed(seed)
        curve, done = Curve(), 0
        with curve.counted():
            config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
            model = get_peft_model(model, config).to(self._device)
            batches = DataLoader(
                [self._joined(row) for row in rows],
                shuffle=True,
                collate_fn=self._batched,
                batch_size=BATCH,
            )
            optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
            schedule = get_linear_schedule_with_warmup(optimizer, 0, updates)
        self._look(curve, model, 0, asked)
        while done < updates:
            for batch in batches:
                with curve.counted():
                    model.train()
                    loss = model(**batch.to(self._device)).loss
                    loss.backward()
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                done += 1
                if done % every == 0 or done == updates:
                    self._look(curve, model, done, asked)
                if done == updates:
                    break
        tokens = sum(len(row["labels"]) - row["labels"].count(-100) for row in asked)
        return {"curve": curve.points, "scored_tokens": tokens, "rows": len(rows)}

    def _joined(self, row: Row) -> dict[str, list[int]]:
        prompt = self._tokenizer(row.prompt + "\n")["input_ids"]
        completion = [*self._tokenizer(row.completion)["input_ids"], self._tokenizer.eos_token_id]
        return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}

    def _look(self, curve: Curve, model: Any, done: int, asked: Sequence[dict[str, list[int]]]) -> None:
        """Nats a token over all rows, as the product counts them."""
        model.eval()
        total, tokens = 0.0, 0
        ordered = sorted(asked, key=lambda row: len(row["input_ids"]))
        with torch.no_grad():
            for start in range(0, len(ordered), _SCORED_AT_ONCE):
                batch = self._batched(ordered[start : start + _SCORED_AT_ONCE])
                count = int((batch["labels"] != -100).sum())
                total += float(model(**batch.to(self._device)).loss) * count
                tokens += count
        curve.look(done, total / tokens)


if __name__ == "__main__":
    serve(Peft())
