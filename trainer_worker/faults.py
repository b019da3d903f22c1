"""Errors as they may be logged: kind and place. Their messages may quote somebody's rows."""

import traceback


def place_of(error: BaseException) -> str:
    """The error's kind and where it came from, without its message."""
    places = "".join(traceback.format_tb(error.__traceback__))
    return f"{type(error).__name__}\n{places}".rstrip()
