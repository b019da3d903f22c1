"""What trainer tests make again and again: small datasets, orders, reports that remember, a base in a folder."""

import json
import random

from prefix_engine.testing import byte_tokenizer, tiny_model
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.order import Order
from trainer_worker.training import Training

WORDS = "a red house by the sea"


def dataset(count=40, seed=0, prompts=None, longest=20):
    """JSONL of rows whose completions repeat their prompts' letter: even a random base can learn them."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        letter = rng.choice("abcd")
        name = number if prompts is None else number % prompts
        completion = letter * rng.randint(1, longest)
        rows.append({"prompt": f"{letter}{name}", "completion": completion})
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Recorder:
    """A report that keeps what it is told and asks to stop when `stop_when` says so."""

    def __init__(self, stop_when=lambda recorder: False):
        self.events, self.updates, self.checkpoints, self.bests = [], [], [], []
        self.settings = None
        self.asked = 0
        self._stop_when = stop_when

    def progress(self, fields):
        self.updates.append(fields)

    def resolved(self, fields):
        self.settings = fields

    def event(self, level, type, message, data=None):  # noqa: A002
        self.events.append((level, type, message, data))

    def best(self, fields, payload):
        self.bests.append((fields, payload))

    def checkpoint(self, update, payload):
        self.checkpoints.append((update, payload))

    def stopping(self):
        self.asked += 1
        return bool(self._stop_when(self))

    @property
    def messages(self):
        return [message for _, type_, message, _ in self.events if type_ == "message"]

    @property
    def metrics(self):
        return [data for _, type_, _, data in self.events if type_ == "metrics"]


def order(data=None, *, seed=3, checkpoint_seconds=1e9, wishes=None, **more):
    wishes = Hyperparameters.from_json({"max_steps": 12, "batch_size": 8, **(wishes or {})})
    training = more.pop("training", None) or [("file-1", dataset() if data is None else data)]
    return Order(wishes, seed, training, checkpoint_seconds=checkpoint_seconds, **more)


def train(base, asked, report=None):
    return Training(base, asked, report or Recorder()).train()


def base_folder(place, **shape):
    """A tiny checkpoint as the hub has them; its path."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - slow

    tiny_model(**shape).save_pretrained(place, safe_serialization=True)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()).save_pretrained(place)
    return str(place)
