"""One generation in the making: how far its row is. Plain Python, known to scheduler and runner alike."""

from dataclasses import dataclass, field

from prefix_engine.request import Finished, FinishReason, Request


@dataclass(slots=True)
class Times:
    """When a request got on, on `time.monotonic`'s scale; None for what has not happened.

    Attributes:
        submitted: the engine was asked.
        loaded: the prefix that it waited for came, or the load failed; None if the prefix was there.
        load_seconds: that its load took, which an earlier request may have begun.
        seated: it got a row.
        first: its first text left.
        ended: it finished or failed.
    """

    submitted: float = 0.0
    loaded: float | None = None
    load_seconds: float = 0.0
    seated: float | None = None
    first: float | None = None
    ended: float | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """The state of one request; its row, once it has one, is changed by the loop only.

    Attributes:
        number: order of arrival, unique in one engine.
        seed: of the row's own random generator.
        m: positions of its prefix; 0 for the base.
        position_offset: position of text token 0.
        prefix_pages: pages of the resident prefix, shared with other rows.
        pages: pages of its text; it writes to those alone that hold tokens from `cached` on.
        cached: text tokens whose keys and values it found in memory.
        computed: text tokens whose keys and values lie in `pages`.
        generated: tokens chosen so far.
        turn: number of the step in which it last had a part.
        loaded: whether a load of its prefix was begun for it.
        cancelled: set from any thread; read by the loop.
        times: when it got on.
    """

    number: int
    request: Request
    seed: int = 0
    m: int = 0
    position_offset: int = 0
    prefix_pages: tuple[int, ...] = ()
    pages: tuple[int, ...] = ()
    cached: int = 0
    computed: int = 0
    generated: list[int] = field(default_factory=list)
    turn: int = 0
    loaded: bool = False
    cancelled: bool = False
    times: Times = field(default_factory=Times)

    @property
    def prompt_left(self) -> int:
        """Prompt tokens still to be computed."""
        return max(0, len(self.request.prompt) - self.computed)

    @property
    def slots_needed(self) -> int:
        """Text positions that need memory: the last generated token is never fed back."""
        return len(self.request.prompt) + max(0, self.request.max_tokens - 1)

    @property
    def may_stop(self) -> bool:
        """Whether the end token or a stop string ends it now."""
        return len(self.generated) >= self.request.sampling.min_tokens

    def finished(self, reason: FinishReason, end_logprob: float | None = None) -> Finished:
        """The last event of its answer."""
        return Finished(reason, len(self.request.prompt), len(self.generated), end_logprob, self.cached)

    def token(self, place: int) -> int:
        """Text token at `place`, counted from the start of the prompt."""
        prompt = self.request.prompt
        return prompt[place] if place < len(prompt) else self.generated[place - len(prompt)]
