"""Several jobs in one step loop over one frozen base: updates of many of them are one pass.

A job is a generator (`run.Steps`): it asks for updates of its learner and does all else, its looks at held-out
rows, checkpoints and its end, in between, the long parts in pieces. So jobs come and go at any step, a long look
of one keeps nobody waiting, and what one raises ends that one. Every job has its own rows, order, seed, schedule
and optimiser state; the pass sees only more rows.
"""

from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

from prefix_engine.base import Base
from trainer_worker.faults import place_of
from trainer_worker.refusal import Refused
from trainer_worker.run import Steps
from trainer_worker.updates import Learner, Updated, update

Result = TypeVar("Result")

# Jobs share a pass up to so many tokens. Short rows gain from company; those that fill the processor by themselves
# lose by it, since what a pass keeps for its way back no longer fits the caches (bench.training measures both).
PASS_TOKENS = 1024


class Together(Generic[Result]):
    """Jobs by name; not more than that."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._jobs: dict[str, Steps[Result]] = {}
        self._waiting: dict[str, Learner] = {}
        self._paused: list[str] = []
        self._ended: dict[str, Result | Exception] = {}

    def __len__(self) -> int:
        """Jobs that have not ended, or whose end nobody was told."""
        return len(self._jobs) + len(self._ended)

    def join(self, name: str, job: Steps[Result]) -> None:
        """Take a job in; its part before the first pause is done at once."""
        self._jobs[name] = job
        self._advance(name, None)

    def drop(self, name: str) -> None:
        """Let go of a job and all that it holds, wherever it is; nothing if it has ended."""
        if name in self._paused:
            self._paused.remove(name)
        job = self._jobs.pop(name, None)
        self._waiting.pop(name, None)
        self._ended.pop(name, None)
        if job is not None:
            job.close()

    def step(self) -> dict[str, Result | Exception]:
        """Move every job by one update, or by one piece of what else it does; the ends since the last call.

        An exception is the end of its job alone. One out of the common pass is raised: nobody knows whose it is.
        """
        waiting, self._waiting = self._waiting, {}
        paused, self._paused = self._paused, []
        for name in paused:
            self._advance(name, None)
        for shared in _passes(waiting.items()):
            seen = update(self._base, [learner for _, learner in shared])
            for (name, _), found in zip(shared, seen, strict=True):
                self._advance(name, found)
        ended, self._ended = self._ended, {}
        return ended

    def _advance(self, name: str, seen: Updated | Refused | None) -> None:
        job = self._jobs[name]
        try:
            learner = job.send(seen)
            if learner is None:
                self._paused.append(name)
            else:
                self._waiting[name] = learner
        except StopIteration as end:
            self._ended[name] = end.value
        except Exception as error:  # noqa: BLE001 - whoever asked gets it as the job's end
            self._ended[name] = _bare(error)
        if name in self._ended:
            del self._jobs[name]


def _passes(waiting: Iterable[tuple[str, Learner]]) -> Iterator[list[tuple[str, Learner]]]:
    """Learners in the order of their names, as many in a pass as their next batches' tokens allow, at least one."""
    shared: list[tuple[str, Learner]] = []
    tokens = 0
    for name, learner in waiting:
        more = learner.next_tokens()
        if shared and tokens + more > PASS_TOKENS:
            yield shared
            shared, tokens = [], 0
        shared.append((name, learner))
        tokens += more
    if shared:
        yield shared


def _bare(error: Exception) -> Exception:
    """The error with its place told in a note, and without its frames: they hold rows of jobs."""
    place = place_of(error)
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    error.__notes__ = [place]
    return error
