"""How the command writes: plain text, tables, complaints. Knows nothing of what it prints."""

import unicodedata
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text


class CommandError(Exception):
    """A failure that the user can read; the message is a whole sentence."""


def out() -> Console:
    """The console that answers are written to."""
    return Console(highlight=False, soft_wrap=True)


def complain(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True, highlight=False, soft_wrap=True).print(Text("error: ", style="red") + plain(message))


def clean(text: str) -> str:
    """`text` without control characters, but with its line breaks and tabs.

    A model may have learned a terminal's escape sequences; they are shown, not obeyed.
    """
    return "".join(
        char if char in "\n\t" or unicodedata.category(char) not in {"Cc", "Cf", "Cs"} else "�"
        for char in text
    )


def plain(text: object) -> Text:
    """`text` as it is: no markup, no control characters."""
    return Text(clean(str(text)))


def show_table(columns: Sequence[str], rows: Iterable[Sequence[object]], empty: str) -> None:
    """Print rows as a table; `empty` is said if there is none."""
    table = Table(*columns, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(plain("-" if value is None else value) for value in row))
    console = out()
    if not table.row_count:
        console.print(plain(empty))
        return
    console.print(table, soft_wrap=not console.is_terminal)


def moment(seconds: float | None) -> str | None:
    """A time of the service, in UTC."""
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


def number(value: object, digits: int = 3) -> str:
    """A loss as text; a dash while there is none."""
    return f"{value:.{digits}f}" if isinstance(value, (int, float)) else "-"


def duration(seconds: float | None) -> str:
    """`m:ss`; dashes while unknown."""
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
