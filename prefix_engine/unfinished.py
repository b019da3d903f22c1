"""Requests that an engine has taken in and not ended, and how many of them may wait. Plain Python."""

from collections.abc import Mapping

from prefix_engine.sequence import Sequence

_LEFT_BEHIND = 2  # times what may wait, with those who went away


class Unfinished:
    """Belongs to who holds the engine's lock.

    What was cancelled lies there until the loop turns next. It is told apart, so that who asks and goes away keeps
    nobody out, as long as there is not as much of it again.

    Args:
        most: requests that may wait.
        most_tokens: that those may take.

    Attributes:
        count: of requests.
        tokens: that they may take.
    """

    def __init__(self, most: int, most_tokens: int) -> None:
        self._most, self._most_tokens = most, most_tokens
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
        """Requests without a row and their tokens, cancelled ones too; what the loop changes meanwhile makes it a guess."""
        return max(0, self.count - len(running)), max(0, self.tokens - running_tokens)

    def refusal(self, tokens: int, running: Mapping[int, object], running_tokens: int) -> str | None:
        """Why a request of so many tokens may not wait; what nothing waits before may, whatever its size."""
        count, held = self.waiting(running, running_tokens)
        if count < self._most and (not count or held + tokens <= self._most_tokens):
            return None  # nobody need look who went away
        gone = [size for number, size in self._cancelled.items() if number not in running]
        left, left_tokens = count - len(gone), held - sum(gone)
        if left >= self._most or count >= _LEFT_BEHIND * self._most:
            return f"{count} requests wait already"
        if (left > 0 and left_tokens + tokens > self._most_tokens) or held > _LEFT_BEHIND * self._most_tokens:
            return f"requests that ask for {self._most_tokens} tokens wait already"
        return None
