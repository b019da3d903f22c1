"""The span of one attempt at a job, in the trace of the request that made the job.

It holds the job's id, the attempt's number, moments and how it ended; no name, text or loss.
"""

from typing import Final

from opentelemetry.trace import SpanKind, StatusCode

from prefix_store.job_rows import Claim
from prefix_store.tracing import Tracing, continued

_WELL: Final = frozenset({"trained", "stopped", "lost"})


class JobSpan:
    """From the claim to the row that says how the attempt ended; nothing if nobody collects traces."""

    def __init__(self, tracing: Tracing | None, claim: Claim) -> None:
        self._span, self._open = None, True
        if tracing is not None:
            told: dict[str, str | int] = {
                "prefixserve.job": claim.job_id,
                "prefixserve.attempt": claim.attempt,
            }
            self._span = tracing.tracer.start_span(
                "job.attempt", continued(claim.job.trace), SpanKind.CONSUMER, told
            )

    def event(self, name: str) -> None:
        """Something happened."""
        if self._span is not None:
            self._span.add_event(name)

    def end(self, outcome: str) -> bool:
        """It is over; False if it was before."""
        was, self._open = self._open, False
        if was and self._span is not None:
            self._span.set_attribute("prefixserve.outcome", outcome)
            if outcome not in _WELL:
                self._span.set_status(StatusCode.ERROR)
            self._span.end()
        return was
