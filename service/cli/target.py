"""Which service and which key the verbs of this run speak with; opens the connection when one is needed."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:  # httpx2 is loaded by the first request, so that --help stays quick
    from service.cli.connection import Connection

DEFAULT_URL = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Target:
    """The address and the key that the options or the environment name."""

    url: str
    api_key: str | None

    def connect(self) -> "Connection":
        """A connection, to be closed by the caller."""
        from service.cli.connection import Connection  # noqa: PLC0415

        return Connection(self.url, self.api_key)


def connect(context: typer.Context) -> "Connection":
    """The connection of the running verb; closed when the verb ends."""
    connection = target(context).connect()
    context.call_on_close(connection.close)
    return connection


def target(context: typer.Context) -> Target:
    """What the global options said."""
    found = context.find_object(Target)
    return found if found is not None else Target(DEFAULT_URL, None)
