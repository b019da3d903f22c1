"""A request on its way through the loop, and its sink: a stranger's callback, whose errors are that request's alone."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from prefix_engine.request import Delta, Event
from prefix_engine.sampling import Score
from prefix_engine.sequence import Sequence
from prefix_engine.text import TextStream

log = logging.getLogger(__name__)

Sink = Callable[[Event], None]


@dataclass(slots=True, eq=False)
class Row:
    """A request from submission to its last event."""

    sequence: Sequence
    sink: Sink
    stream: TextStream
    prompt_scores: list[Score] = field(default_factory=list)

    def tell(self, event: Event) -> None:
        """Give its sink an event."""
        tell(self.sequence, self.sink, event)


def tell(sequence: Sequence, sink: Sink, event: Event) -> None:
    """Give an event to a request's sink; one that raises costs this request its row, and nobody else anything."""
    try:
        sink(event)
    except (
        BaseException
    ) as error:  # CancelledError of asyncio is no Exception, nor is a panic of a library in Rust
        log.warning("sink.failed error=%s", type(error).__name__)
        sequence.cancelled = True
        # On the main thread these come of a signal that fell into the sink: who turns the engine there is meant.
        if isinstance(error, KeyboardInterrupt | SystemExit) and _is_main():
            raise


def timed(sequence: Sequence, sink: Sink, ended: Callable[[Sequence], None]) -> Sink:
    """A sink that notes when events came, and has `ended` called behind the last one, whatever the sink does."""
    times = sequence.times

    def timing(event: Event) -> None:
        if not isinstance(event, Delta):
            times.ended = time.monotonic()
        elif times.first is None:
            times.first = time.monotonic()
        try:
            sink(event)
        finally:
            if not isinstance(event, Delta):
                ended(sequence)

    return timing


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()
