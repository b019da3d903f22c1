"""Counts what was compared with transformers and PEFT, and prints it at the end."""

from dataclasses import dataclass

import pytest
from oracle import Answer


@dataclass
class Tally:
    mixes: int = 0
    rows: int = 0
    tokens: int = 0
    ties: int = 0
    worst: float = 0.0
    reused: int = 0

    def compare(self, expected: Answer, logits, tokens) -> None:
        """Hold logits to 1e-4, and tokens to the oracle's wherever its two best differ by more than 2e-4."""
        steps = len(tokens)
        if steps == 0:
            return
        self.rows += 1
        difference = float((logits - expected.logits[:steps]).abs().max())
        self.worst = max(self.worst, difference)
        assert difference <= 1e-4
        for step in range(steps):
            self.tokens += 1
            if expected.gap(step) <= 2e-4:
                self.ties += 1
            else:
                assert tokens[step] == expected.tokens[step]

    def note_reuse(self, sink) -> None:
        """Count the prompt tokens that were found in memory."""
        self.reused += getattr(sink.events[-1], "cached_tokens", 0)

    def compare_free(self, expected: Answer, tokens) -> None:
        """Hold a free greedy run to the oracle's tokens up to its first tie."""
        for step, token in enumerate(tokens):
            if expected.gap(step) <= 2e-4:
                return
            assert token == expected.tokens[step]


TALLY = Tally()


@pytest.fixture(scope="session")
def tally():
    return TALLY


def pytest_terminal_summary(terminalreporter):
    if TALLY.tokens:
        terminalreporter.write_line(
            f"exactness: {TALLY.mixes} mixes, {TALLY.rows} rows, {TALLY.tokens} tokens compared with transformers and "
            f"PEFT, {TALLY.reused} prompt tokens reused, {TALLY.ties} ties, largest difference of logits {TALLY.worst:.1e}"
        )
