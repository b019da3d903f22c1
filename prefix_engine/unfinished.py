"""Requests that an engine has taken in and not ended, and how many of them wait. Plain Python."""

from collections.abc import Mapping

from prefix_engine.sequence import Sequence


class Unfinished:
    """Belongs to who holds the engine's lock.

    What was cancelled lies there until the loop turns next, and is not among those that wait: nobody fills the line by
    asking and going away.

    Attributes:
        count: of requests.
        tokens: that they may take.
    """

    def __init__(self) -> None:
        self.count = self.tokens = 0
        self._cancelled: dict[int, int] = {}  # tokens by number

    def add(self, sequence: Sequence) -> None:
        """Count a request in."""
        self.count += 1
        self.tokens += sequence.request.positions

    def cancel(self, sequence: Sequence) -> None:
        """Nobody waits for it any more: the loop ends it when it turns next, unless it has ended."""
        sequence.cancelled = True
        if sequence.times.ended is None:
            self._cancelled[sequence.number] = sequence.request.positions

    def end(self, sequence: Sequence) -> None:
        """Count a request out."""
        self.count -= 1
        self.tokens -= sequence.request.positions
        self._cancelled.pop(sequence.number, None)

    def waiting(self, running: Mapping[int, object], running_tokens: int) -> tuple[int, int]:
        """Requests that wait for a row, and their tokens; what the loop changes meanwhile makes both a guess."""
        gone = [tokens for number, tokens in self._cancelled.items() if number not in running]
        count, tokens = self.count - len(running) - len(gone), self.tokens - running_tokens - sum(gone)
        return max(0, count), max(0, tokens)
