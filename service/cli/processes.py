"""Verbs that start processes: the service, the worker, the demo. They start `python -m`, never import it."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from service.cli.children import Children
from service.cli.store_verbs import DEFAULT_DATA_DIR
from service.cli.terminal import out, plain

DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", "8000"


def serve(
    with_worker: Annotated[
        bool, typer.Option("--with-worker", help="Also a worker, so that jobs are trained.")
    ] = False,
) -> None:
    """Run the service until Ctrl-C; settings come from PREFIX_* variables."""
    environment = dict(os.environ)
    url = address(environment)
    with stopping(), Children(environment) as children:
        children.start("service", "service")
        children.wait_ready(url)
        if with_worker:
            children.start("worker", "trainer_worker")
        out().print(plain(greeting(url, environment)))
        try:
            children.wait()
        except KeyboardInterrupt:
            out().print(plain("\nstopping: running requests finish first"))


def worker() -> None:
    """Run a worker until Ctrl-C; settings come from PREFIX_* variables."""
    with stopping(), Children(os.environ) as children:
        children.start("worker", "trainer_worker")
        try:
            children.wait()
        except KeyboardInterrupt:
            out().print(plain("\nstopping: an unfinished job goes back to the queue"))


def demo(
    data: Annotated[
        Path | None, typer.Option(help="The carried datasets; examples/data of the clone by default.")
    ] = None,
    base_model: Annotated[
        str, typer.Option(help="A GPT-2: gpt2-mini is carried, others come from the hub or a folder.")
    ] = "gpt2-mini",
    max_steps: Annotated[int | None, typer.Option(help="Most updates of each training.", min=1)] = None,
) -> None:
    """The whole loop once: train three users' prefixes, generate in one batch, delete a user."""
    from service.cli.demo import run  # noqa: PLC0415  (httpx2 is not needed to start the others)

    with stopping():
        run(data, base_model, max_steps)


def address(environment: Mapping[str, str]) -> str:
    """Where the service will listen, as a client of this machine reaches it."""
    host = environment.get("PREFIX_HOST") or DEFAULT_HOST
    reachable = "127.0.0.1" if host in {"0.0.0.0", "::"} else host  # noqa: S104
    shown = f"[{reachable}]" if ":" in reachable else reachable
    return f"http://{shown}:{environment.get('PREFIX_PORT') or DEFAULT_PORT}"


def greeting(url: str, environment: Mapping[str, str]) -> str:
    """What a newcomer needs: the address, the admin key's place, a first call."""
    if environment.get("PREFIX_ADMIN_KEY"):
        place, read = "the variable PREFIX_ADMIN_KEY", "$PREFIX_ADMIN_KEY"
    else:
        path = Path(environment.get("PREFIX_DATA_DIR") or DEFAULT_DATA_DIR) / "secrets" / "admin_key"
        place, read = str(path), f"$(cat {path})"
    return (
        f"\nprefixserve listens on {url}\n"
        f"the admin key is in {place}\n"
        f"make a tenant, which answers with its key:\n\n"
        f'  curl -s {url}/v1/tenants -H "Authorization: Bearer {read}" '
        f"-H 'Content-Type: application/json' -d '{{\"name\": \"acme\"}}'\n\n"
        f"Ctrl-C stops.\n"
    )


@contextmanager
def stopping() -> Iterator[None]:
    """Within the block SIGTERM ends us as Ctrl-C does, so that what we started is stopped too."""

    def interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
