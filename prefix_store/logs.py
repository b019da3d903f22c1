"""The log of one process: one line an event, for our events and the libraries' alike, on stderr.

Fixed words, ids and numbers. Of an error its kind and place are shown, never its message, which may quote a
text, a name or a key; of what a library says the first line alone, and nothing below a warning.
"""

import logging
import sys
import threading
import traceback
from collections.abc import Sequence
from types import FrameType, TracebackType
from typing import Annotated, Any, Final, Literal, TextIO

import structlog
from pydantic import BeforeValidator
from structlog.typing import EventDict

Format = Literal["json", "text"]
Level = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda given: given.lower() if isinstance(given, str) else given),
]

OURS: Final = ("service", "trainer_worker", "prefix_store", "prefix_engine")
_TOLD = ("uvicorn",)  # libraries whose news are worth having
_FRAMES = 40

log = structlog.get_logger("prefix_store")


def write_logs(how: Format = "json", level: Level = "info", to: TextIO | None = None) -> None:
    """Send every log of this process through one chain, what nobody caught too.

    Args:
        how: one JSON object a line, or text for a terminal.
        level: of our own events; libraries say only warnings, and uvicorn what it does, whatever the level is.
        to: stderr if None.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
    ]
    last: Any = structlog.processors.JSONRenderer(default=_kind_of)
    if how == "text":
        last = structlog.dev.ConsoleRenderer(
            colors=False, exception_formatter=structlog.dev.plain_traceback, sort_keys=False
        )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[*shared, _first_line],
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _without_messages, last],
    )
    handler = logging.StreamHandler(to or sys.stderr)
    handler.setFormatter(formatter)
    # At a lower level libraries quote what they work on: a form's bytes, a statement's values.
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in OURS:
        logging.getLogger(name).setLevel(level.upper())
    for name in _TOLD:
        logging.getLogger(name).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    _catch_the_rest()


def places(frame: FrameType | None) -> str:
    """Where a thread is: file, line and function of each frame, the innermost last, without any value."""
    found = [(f.f_code.co_filename, line, f.f_code.co_name) for f, line in traceback.walk_stack(frame)]
    return _joined([*reversed(found)][-_FRAMES:])


def place_of(error: BaseException) -> str:
    """An error's kind and where it came from, in one line, without its message."""
    found = [(f.filename, f.lineno, f.name) for f in traceback.extract_tb(error.__traceback__)]
    return f"{type(error).__name__} at {_joined(found)}"


def _joined(frames: Sequence[tuple[str, int | None, str]]) -> str:
    return " > ".join(f"{filename.rsplit('/', 1)[-1]}:{line} {name}" for filename, line, name in frames)


def _without_messages(_logger: Any, _method: str, event: EventDict) -> EventDict:
    info = event.pop("exc_info", None)
    event.pop("stack_info", None)
    if info is True:
        info = sys.exc_info()
    error = info if isinstance(info, BaseException) else (info or (None, None, None))[1]
    if error is not None:
        event["exception"] = place_of(error)
    return event


def _first_line(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """What follows the first line of a library's message are details, such as what asyncio knows of a task."""
    event["event"] = str(event["event"]).partition("\n")[0]
    return event


def _kind_of(value: Any) -> str:
    return type(value).__name__


def _catch_the_rest() -> None:
    """What nobody caught would be printed with its message."""

    def ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if issubclass(kind, KeyboardInterrupt):
            sys.__excepthook__(kind, error, trace)
            return
        log.critical("process.failed", exc_info=error)

    def thread_ended(told: threading.ExceptHookArgs) -> None:
        if told.exc_type is not SystemExit:
            log.error("thread.failed", exc_info=told.exc_value)

    def forgotten(told: "sys.UnraisableHookArgs") -> None:
        log.error("error.unraisable", exc_info=told.exc_value)

    sys.excepthook = ended
    threading.excepthook = thread_ended
    sys.unraisablehook = forgotten
