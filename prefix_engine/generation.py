"""A submitted request as its sender holds it: to be cancelled, and to be asked how far it came and when."""

from collections.abc import Callable

from prefix_engine.sequence import Sequence, Times


class Generation:
    """A submitted request."""

    def __init__(self, sequence: Sequence, cancel: Callable[[Sequence], None]) -> None:
        self._sequence = sequence
        self._cancel = cancel

    def cancel(self) -> None:
        """Free the row by the next step; the sink gets Failed("cancelled") unless it ended before."""
        self._cancel(self._sequence)

    @property
    def times(self) -> Times:
        """When it got on; read without stopping the loop."""
        return self._sequence.times

    @property
    def tokens(self) -> tuple[int, int, int]:
        """Tokens of the prompt, those of them that were not computed again, and tokens generated so far."""
        sequence = self._sequence
        return len(sequence.request.prompt), sequence.cached, len(sequence.generated)
