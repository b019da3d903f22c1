"""The loop of one job: updates, looks at the held-out rows, checkpoints, early stop, the best kept.

Its state lives in `State` and in the learner alone, so a run may be cut between any two updates and go on
elsewhere. Long held-out sets are looked at through an even sample; what is reported is the whole set.
"""

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

from torch import Tensor

from prefix_engine.base import Base
from prefix_engine.prefix import Prefix
from prefix_engine.template import Template
from trainer_worker import checkpoint
from trainer_worker.checkpoint import State
from trainer_worker.evaluate import Score, score
from trainer_worker.pieces import Pieces
from trainer_worker.refusal import Refused
from trainer_worker.report import Report, Stopped
from trainer_worker.rows import Encoded
from trainer_worker.updates import Learner, Updated

LOOK_TOKENS = 8192  # of held-out rows that a look during training takes, about
_TOLD = 40  # events with the training loss, over the whole run

# Gives out a learner whenever it is to be moved, and wants what the update saw then, or None before that; gives out
# None wherever others may go first; returns something at last.
Result = TypeVar("Result")
Steps = Generator[Learner | None, Updated | Refused | None, Result]


def paused(work: Pieces[Result], report: Report) -> Steps[Result]:
    """Work in pieces as a part of a job.

    Raises:
        Stopped: asked to stop, between two pieces.
    """
    with contextlib.closing(work):
        while True:
            try:
                next(work)
            except StopIteration as end:
                return end.value  # type: ignore[no-any-return]
            _obey(report)
            yield None


def _obey(report: Report) -> None:
    if report.stopping():
        raise Stopped


def looked_at(held_out: Sequence[Encoded]) -> Sequence[Encoded]:
    """The even sample of held-out rows that a look takes."""
    tokens = sum(len(row.tokens) for row in held_out)
    return held_out[:: math.ceil(tokens / LOOK_TOKENS)]


class Run:
    """One learner on its way; `best` is the prefix with the lowest loss seen so far."""

    def __init__(
        self,
        base: Base,
        learner: Learner,
        held_out: Sequence[Encoded],
        state: State,
        report: Report,
        checkpoint_seconds: float,
        template: Template,
    ) -> None:
        self._base, self._learner, self._report = base, learner, report
        self._held_out = held_out
        self._sample = looked_at(held_out)
        self._checkpoint_seconds = checkpoint_seconds
        self._tell_every = max(1, learner.plan.updates // _TOLD)
        self._began = self._saved = time.monotonic()
        self._began_at = 0
        self._template = template
        self._told_best: int | None = None  # the update of the best prefix that was told last
        self.state = state
        self.best: Tensor = learner.form.prefix().detach().clone()

    def resume(self, data: bytes) -> bool:
        """Go on from a checkpoint; False if it is of another run, which changes nothing."""
        found = checkpoint.restore(data, self._learner, self.state.identity)
        if found is None:
            return False
        self.state, self.best = found[0], found[1].to(self._base.device)
        self._began_at = self._learner.done
        return True

    def steps(self) -> Steps[None]:
        """Update until the plan's end or until the held-out loss has stopped falling.

        Raises:
            Stopped: asked to stop.
            Refused: it diverged.
        """
        while not (yield from self._over()):
            self._save_if_due()
            seen: Updated | Refused | None = None
            while seen is None:  # not moved, but asked whether it is to stop
                _obey(self._report)
                seen = yield self._learner
            self._took(seen)

    def finish(self) -> Steps[Score]:
        """The best prefix on all held-out rows.

        Raises:
            Stopped: asked to stop.
        """
        return (yield from self.score(self.best, self._held_out, self._learner.plan.position_offset))

    def paused(self, work: Pieces[Result]) -> Steps[Result]:
        """Work in pieces as a part of the run; see `paused`."""
        return (yield from paused(work, self._report))

    def score(self, prefix: Tensor | None, rows: Sequence[Encoded], position_offset: int) -> Steps[Score]:
        """Score rows, unless asked to stop."""
        return (yield from self.paused(score(self._base, rows, prefix, position_offset)))

    @property
    def done(self) -> int:
        """Updates that are behind it."""
        return self._learner.done

    def _tell_progress(self) -> None:
        self._report.progress(
            {
                "update": self._learner.done,
                "updates": self._learner.plan.updates,
                "train_loss": self.state.train_loss,
                "held_out_loss": self.state.last_loss,
                "seconds_left": self._seconds_left(),
            }
        )

    def elapsed(self) -> float:
        """Seconds of this and all earlier attempts."""
        return self.state.seconds + time.monotonic() - self._began

    def _over(self) -> Steps[bool]:
        plan, done = self._learner.plan, self._learner.done
        ended = done >= plan.updates
        if self.state.looked_at < done and (ended or done % plan.eval_every == 0):
            yield from self._look()
        return ended or self.state.stale >= plan.patience

    def _look(self) -> Steps[None]:
        state, done = self.state, self._learner.done
        prefix = self._learner.form.prefix().detach().clone()
        offset = self._learner.plan.position_offset
        found = yield from self.score(prefix, self._sample, offset)
        self._learner.require_finite(found.loss)
        first = found
        if done == 0 and len(self._sample) < len(self._held_out):
            first = yield from self.score(prefix, self._held_out, offset)
        # Here, behind the last pause: a run that is cut in it looks again.
        if done == 0:
            state.first_loss = first.loss
        state.looked_at, state.last_loss = done, found.loss
        if state.best_loss is None or found.loss < state.best_loss:
            state.best_loss, state.best_update, state.stale = found.loss, done, 0
            self.best = prefix
        else:
            state.stale += 1
        self._tell(found)

    def _took(self, seen: Updated | Refused) -> None:
        if isinstance(seen, Refused):
            raise seen
        state = self.state
        loss, accuracy, count = state.window
        state.window = (loss + seen.loss, accuracy + seen.accuracy, count + 1)
        state.trained_tokens += seen.tokens
        state.train_loss = seen.loss if state.train_loss is None else 0.9 * state.train_loss + 0.1 * seen.loss
        if self._learner.done % self._tell_every == 0 and not self._looks_now():
            self._tell(None)
        self._tell_progress()

    def _looks_now(self) -> bool:
        plan, done = self._learner.plan, self._learner.done
        return done % plan.eval_every == 0 or done >= plan.updates

    def _tell(self, found: Score | None) -> None:
        """A metrics event, in OpenAI's words where it has one."""
        state, plan, done = self.state, self._learner.plan, self._learner.done
        data: dict[str, Any] = {"step": done, "total_steps": plan.updates}
        parts = [f"Step {done}/{plan.updates}:"]
        loss, accuracy, count = state.window
        if count:
            data |= {"train_loss": loss / count, "train_mean_token_accuracy": accuracy / count}
            parts.append(f"training loss={loss / count:.3f}")
            state.window = (0.0, 0.0, 0)
        if found is not None:
            data |= {"valid_loss": found.loss, "valid_mean_token_accuracy": found.accuracy}
            parts.append(f"held-out loss={found.loss:.3f}")
        shown = ("step", "train_loss", "valid_loss")
        state.curve.append({name: data[name] for name in shown if name in data})
        data["seconds_left"] = self._seconds_left()
        self._report.event("info", "metrics", " ".join(parts), data)

    def _seconds_left(self) -> float | None:
        done = self._learner.done - self._began_at
        if done == 0:
            return None
        each = (time.monotonic() - self._began) / done
        return round(each * (self._learner.plan.updates - self._learner.done), 1)

    def _save_if_due(self) -> None:
        if time.monotonic() - self._saved >= self._checkpoint_seconds:
            self.save()

    def save(self) -> None:
        """Tell the state as a checkpoint."""
        now = time.monotonic()
        self._saved = now
        self._tell_best()
        kept = checkpoint.dump(self._learner, self.state, self.best, self.elapsed())
        self._report.checkpoint(self._learner.done, kept)

    def _tell_best(self) -> None:
        """The best prefix so far, which can be served while the run goes on; none before the first look."""
        state = self.state
        if state.best_loss is None or state.best_update == self._told_best:
            return
        offset = self._learner.plan.position_offset
        prefix = Prefix(self.best.cpu().contiguous(), offset, self._base.fingerprint)
        metrics = {"step": state.best_update, "valid_loss": state.best_loss}
        fields = {"m": prefix.m, "position_offset": offset, "template": self._template.to_json()}
        self._report.best({**fields, "metrics": metrics}, prefix.to_bytes())
        self._told_best = state.best_update
