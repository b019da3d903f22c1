"""The verb that generates: one request, its answers shown as they come."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from service.cli.target import connect
from service.cli.terminal import CommandError, clean, out, plain

if TYPE_CHECKING:
    from service.cli.connection import Connection


def generate(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="The base model, a prefix, a version (name@N), or a job (name@ftjob-...).")
    ],
    prompts: Annotated[list[str], typer.Argument(help="One prompt or several; - reads standard input.")],
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.", min=1)] = 64,
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0, max=2)] = 0.0,
    top_p: Annotated[float | None, typer.Option(help="Nucleus.", min=0, max=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Same seed, same answer.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; may be repeated.")] = None,
) -> None:
    """Generate, streamed; several prompts run in one batch."""
    texts = [typer.get_text_stream("stdin").read() if text == "-" else text for text in prompts]
    body = {
        "model": model,
        "prompt": texts,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop": stop or None,
    }
    pieces = stream_text(connect(context), body)
    if len(texts) == 1:
        _one(pieces, out())
    else:
        _several(pieces, texts, out())


def stream_text(connection: "Connection", body: Mapping[str, Any]) -> Iterator[tuple[int, str]]:
    """(choice, piece of text) as they come.

    Raises:
        CommandError: a choice did not end.
    """
    asked = body["prompt"]
    open_choices = set(range(len(asked) if isinstance(asked, list) else 1))
    for chunk in connection.stream(body):
        for choice in chunk["choices"]:
            if choice["text"]:
                yield choice["index"], choice["text"]
            if choice.get("finish_reason"):
                open_choices.discard(choice["index"])
    if open_choices:
        raise CommandError("the stream ended before every answer was finished")


def _one(pieces: Iterator[tuple[int, str]], console: Console) -> None:
    for _, piece in pieces:
        console.print(plain(piece), end="")
    console.print()


def _several(pieces: Iterator[tuple[int, str]], prompts: list[str], console: Console) -> None:
    answers = [""] * len(prompts)
    if not console.is_terminal:
        for index, piece in pieces:
            answers[index] += piece
        console.print(_shown(prompts, answers))
        return
    with Live(console=console, refresh_per_second=12, vertical_overflow="visible") as live:
        for index, piece in pieces:
            answers[index] += piece
            live.update(_shown(prompts, answers))


def _shown(prompts: list[str], answers: list[str]) -> Group:
    parts: list[Text] = []
    for prompt, answer in zip(prompts, answers, strict=True):
        parts += [Text(clean(prompt), style="bold"), Text(clean(answer)), Text()]
    return Group(*parts)
