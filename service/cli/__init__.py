"""The `prefixserve` command: a thin HTTP client, and verbs that start processes.

It knows the wire only: it never imports the service, the engine or torch. The two verbs that open the
store themselves say so in their help.
"""

import sys

from service.cli.terminal import CommandError, complain


def main() -> None:
    """Run the command; a failure prints one sentence and exits 1."""
    from service.cli.app import app  # noqa: PLC0415  (so that a broken verb cannot hide the message)

    try:
        app()
    except CommandError as error:
        complain(str(error))
        sys.exit(1)
