"""The loop: plan the updates from the budget, do them, keep the state every few minutes, go on where a run was cut."""

import copy
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.carried_base import state
from bench.carried_base.batches import batch
from bench.carried_base.model import add_gradients, optimisers
from bench.carried_base.recipe import Recipe, from_json


class RunError(Exception):
    """The folder holds another run; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training: what it reads and where it leaves its state and log."""

    stream: NDArray[np.uint16]
    corpus: str  # digest
    start: str  # SHA-256 of the file that `model` was read from; empty from none
    folder: Path
    threads: int
    save_seconds: float = 180.0

    def train(self, model: Any, recipe: Recipe, stop_after: int | None = None) -> Recipe:
        """Train `model` in place, from the state that the folder holds if it holds one.

        `recipe.updates` of 0 takes the number that was planned. A number other than the planned one is
        taken while the rate of every update that was done is the same by both.

        Returns: the recipe as it was followed.

        Raises:
            RunError: the folder's state is of another recipe or corpus.
        """
        torch.set_num_threads(self.threads)
        makers = optimisers(model, recipe)
        done, seconds = 0, 0.0
        if (kept := state.read(self.folder)) is not None:
            recipe = self._follow(kept, recipe)
            state.restore(self.folder, model, makers)
            done, seconds = kept.update, kept.seconds
        state.cut_log(self.folder, done)
        state.log(self.folder, event="begin", update=done, updates=recipe.updates, threads=self.threads)
        began = saved = time.monotonic()
        for update in range(done, recipe.updates):
            loss, norm = self._update(model, makers, recipe, update)
            now = time.monotonic()
            rate = makers["matrices"].param_groups[0]["lr"]
            self._note(recipe, update + 1, loss, norm, rate, seconds + now - began)
            last = update + 1 in (recipe.updates, stop_after)
            if last or now - saved > self.save_seconds:
                saved = now
                spent = seconds + now - began
                progress = state.Progress(update + 1, spent, recipe.as_json(), self.corpus, self.start)
                state.save(self.folder, progress, model, makers)
            if update + 1 == stop_after:
                break
        return recipe

    def _note(
        self, recipe: Recipe, update: int, loss: float, norm: float, rate: float, seconds: float
    ) -> None:
        state.log(
            self.folder,
            update=update,
            tokens=update * recipe.tokens,
            loss=round(loss, 4),
            norm=round(norm, 4),
            rate=rate,
            seconds=round(seconds, 2),
        )

    def _update(self, model: Any, makers: Any, recipe: Recipe, update: int) -> tuple[float, float]:
        loss = add_gradients(model, batch(self.stream, recipe, update), recipe.micro)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.clip)
        for maker, rate in zip(makers.values(), (recipe.matrices_rate, recipe.rest_rate), strict=True):
            maker.param_groups[0]["lr"] = rate * recipe.share(update)
            maker.step()
            maker.zero_grad(set_to_none=False)
        return loss, float(norm)

    def _follow(self, kept: state.Progress, recipe: Recipe) -> Recipe:
        planned = from_json(kept.recipe)
        wanted = replace(recipe, updates=recipe.updates or planned.updates)
        same = (kept.corpus, kept.start) == (self.corpus, self.start)
        if not same or replace(wanted, updates=planned.updates) != planned:
            raise RunError(
                f"{self.folder} holds a run with other settings, weights or corpus: go on with the same ones, "
                f"or give --out a new folder"
            )
        if any(wanted.share(update) != planned.share(update) for update in range(kept.update)):
            raise RunError(
                f"{self.folder} holds a run of {planned.updates} updates that is past the point where another "
                f"number could be chosen: leave --updates and --minutes out to go on"
            )
        return wanted

    def planned(self, model: Any, recipe: Recipe, minutes: float) -> Recipe:
        """The recipe with as many updates as fit the minutes, by the time that a few take on a copy."""
        torch.set_num_threads(self.threads)
        trial = copy.deepcopy(model)
        makers = optimisers(trial, recipe)
        tried = replace(recipe, updates=recipe.warmup)
        self._update(trial, makers, tried, 0)  # the first one also makes the optimisers' tensors
        began = time.monotonic()
        few = recipe.long_every or 3  # so that long windows have their share
        for update in range(few):
            self._update(trial, makers, tried, update)
        each = (time.monotonic() - began) / few
        found = replace(recipe, updates=max(1, round(minutes * 60 / each)))
        state.log(
            self.folder, event="plan", minutes=minutes, step_seconds=round(each, 3), updates=found.updates
        )
        return found
