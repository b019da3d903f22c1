"""What a training run tells while it runs. Knows neither pipes nor tables."""

from typing import Any, Literal, Protocol


class Stopped(Exception):
    """The run was asked to stop; its last checkpoint is out."""


class Report(Protocol):
    """Takes what a run tells; made by the child process, by benches and by tests."""

    def progress(self, fields: dict[str, Any]) -> None:
        """Take how far the run is: update, updates, train_loss, held_out_loss, seconds_left."""

    def resolved(self, fields: dict[str, Any]) -> None:
        """Take the hyperparameters that the run goes by, in the words of a request, before its first update."""

    def event(
        self,
        level: Literal["info", "warn"],
        type: Literal["message", "metrics"],  # noqa: A002 - the field's name
        message: str,
        data: dict[str, Any] | None = None,
    ) -> None:
        """Take something that a person may want to read later."""

    def checkpoint(self, update: int, payload: bytes) -> None:
        """Take the state after that many updates."""

    def best(self, fields: dict[str, Any], payload: bytes) -> None:
        """Take the best prefix so far, right before the checkpoint that it belongs to: its bytes and, in `fields`,
        m, position_offset, template and metrics (step, valid_loss). It is not told again while it stays the best.
        """

    def stopping(self) -> bool:
        """Whether to save a checkpoint and stop."""
        ...
