"""An S3 of moto's for trials and tests, which answers one request after another.

moto's own server answers many at once, and its listings walk what another request changes: it then says 500.

Run: python -m deploy.storage_server --host 127.0.0.1 --port 9000
"""

import argparse
import io
import threading
from collections.abc import Callable, Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple
from werkzeug.wsgi import get_input_stream

WSGI = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def one_at_a_time(app: WSGI) -> WSGI:
    """A WSGI application whose calls wait for each other; a body is read before, so that a slow sender delays nobody."""
    turn = threading.Lock()

    def answer(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        environ["wsgi.input"] = io.BytesIO(get_input_stream(environ).read())
        with turn:
            return list(app(environ, start))

    return answer


def main() -> None:
    """Serve until ended; everything is forgotten then."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    told = parser.parse_args()
    app = one_at_a_time(DomainDispatcherApplication(create_backend_app))
    run_simple(told.host, told.port, app, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
