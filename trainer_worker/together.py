"""Several jobs in one step loop over one frozen base: each update of all of them is one pass.

A job is a generator (`run.Steps`): it asks for updates of its learner and does all else, its looks at held-out
rows, checkpoints and its end, in between. So jobs come and go at any step, and what one raises ends that one.
Every job has its own rows, order, seed, schedule and optimiser state; the pass sees only more rows.
"""

from typing import Generic, TypeVar

from prefix_engine.base import Base
from trainer_worker.faults import place_of
from trainer_worker.refusal import Refused
from trainer_worker.run import Steps
from trainer_worker.updates import Learner, Updated, update

Result = TypeVar("Result")


class Together(Generic[Result]):
    """Jobs by name; not more than that."""

    def __init__(self, base: Base) -> None:
        self._base = base
        self._jobs: dict[str, Steps[Result]] = {}
        self._waiting: dict[str, Learner] = {}
        self._ended: dict[str, Result | Exception] = {}

    def __len__(self) -> int:
        """Jobs that have not ended, or whose end nobody was told."""
        return len(self._jobs) + len(self._ended)

    def join(self, name: str, job: Steps[Result]) -> None:
        """Take a job in; its part before the first update is done at once."""
        self._jobs[name] = job
        self._advance(name, None)

    def drop(self, name: str) -> None:
        """Let go of a job and all that it holds, wherever it is; nothing if it has ended."""
        job = self._jobs.pop(name, None)
        self._waiting.pop(name, None)
        self._ended.pop(name, None)
        if job is not None:
            job.close()

    def step(self) -> dict[str, Result | Exception]:
        """Move every job by one update; what those came to that ended since the last call.

        An exception is the end of its job alone. One out of the common pass is raised: nobody knows whose it is.
        """
        waiting, self._waiting = self._waiting, {}
        if waiting:
            seen = update(self._base, list(waiting.values()))
            for name, found in zip(waiting, seen, strict=True):
                self._advance(name, found)
        ended, self._ended = self._ended, {}
        return ended

    def _advance(self, name: str, seen: Updated | Refused | None) -> None:
        job = self._jobs[name]
        try:
            self._waiting[name] = next(job) if seen is None else job.send(seen)
        except StopIteration as end:
            self._ended[name] = end.value
        except Exception as error:  # noqa: BLE001 - whoever asked gets it as the job's end
            self._ended[name] = _bare(error)
        if name in self._ended:
            del self._jobs[name]


def _bare(error: Exception) -> Exception:
    """The error with its place told in a note, and without its frames: they hold rows of jobs."""
    place = place_of(error)
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    error.__notes__ = [place]
    return error
