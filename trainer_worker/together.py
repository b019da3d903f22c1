"""Several jobs in one step loop over one frozen base: updates of many of them are one pass.

A job is a generator (`run.Steps`): it asks for updates of its learner and does all else, its looks at held-out
rows, checkpoints and its end, in between. Updates and looks are done in pieces, and a step is one piece of each, so
that jobs come and go soon, whatever the others do, and what one raises ends that one. Who has had the fewest tokens
is moved next: large batches take no more of the time than small ones. Every job has its own rows, order, seed,
schedule and optimiser state; the pass sees only more rows.
"""

from collections import deque
from typing import Generic, TypeVar

from prefix_engine.base import Base
from trainer_worker.faults import place_of
from trainer_worker.pieces import Pieces
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
        self._waiting: dict[str, Learner] = {}  # to be moved
        self._paused: deque[str] = deque()
        self._moving: tuple[list[str], Pieces[list[Updated | Refused]]] | None = None
        self._had: dict[str, int] = {}  # tokens, in updates
        self._ended: dict[str, Result | Exception] = {}

    def __len__(self) -> int:
        """Jobs that have not ended, or whose end nobody was told."""
        return len(self._jobs) + len(self._ended)

    def join(self, name: str, job: Steps[Result]) -> None:
        """Take a job in; its part before the first pause is done at once."""
        self._jobs[name] = job
        self._had[name] = min(self._had.values(), default=0)
        self._advance(name, None)

    def drop(self, name: str) -> None:
        """Let go of a job and all that it holds, wherever it is; nothing if it has ended."""
        if self._moving is not None and name in self._moving[0]:
            self._moving[1].close()  # nobody was moved yet: the others' update begins again
            self._moving = None
        if name in self._paused:
            self._paused.remove(name)
        job = self._jobs.pop(name, None)
        for known in (self._waiting, self._had, self._ended):
            known.pop(name, None)
        if job is not None:
            job.close()

    def step(self) -> dict[str, Result | Exception]:
        """Do one piece of an update and one of what else there is; the ends since the last call.

        An exception is the end of its job alone. One out of the common pass is raised: nobody knows whose it is.
        """
        if self._paused:
            self._advance(self._paused.popleft(), None)
        moving = [] if self._moving is None else self._moving[0]
        for name in [name for name in self._waiting if name not in moving]:
            self._advance(name, None)  # who is to stop need not be moved before
        if self._moving is None and self._waiting:
            names = self._next_pass()
            for name in names:
                self._had[name] += self._waiting[name].next_tokens()
            self._moving = names, update(self._base, [self._waiting[name] for name in names])
        if self._moving is not None:
            self._move(*self._moving)
        ended, self._ended = self._ended, {}
        return ended

    def _move(self, names: list[str], work: Pieces[list[Updated | Refused]]) -> None:
        try:
            next(work)
        except StopIteration as end:
            self._moving = None
            for name, seen in zip(names, end.value, strict=True):
                self._advance(name, seen)

    def _next_pass(self) -> list[str]:
        """Who has had the fewest tokens, and as many others, in that order, as find room in the pass."""
        names: list[str] = []
        tokens = 0
        for name in sorted(self._waiting, key=self._had.__getitem__):
            more = self._waiting[name].next_tokens()
            if not names or tokens + more <= PASS_TOKENS:
                names.append(name)
                tokens += more
        return names

    def _advance(self, name: str, seen: Updated | Refused | None) -> None:
        job = self._jobs[name]
        self._waiting.pop(name, None)
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
            del self._jobs[name], self._had[name]


def _bare(error: Exception) -> Exception:
    """The error with its place told in a note, and without its frames: they hold rows of jobs."""
    place = place_of(error)
    seen: BaseException | None = error
    while seen is not None:
        seen.__traceback__ = None
        seen = seen.__cause__ or seen.__context__
    error.__notes__ = [place]
    return error
