"""The verb that measures: a load on a running service, and how long its answers took."""

import itertools
import json
import math
from typing import Annotated

import typer
from rich.console import Console

from service.cli.target import connect, target
from service.cli.terminal import CommandError, out, plain


def bench(
    context: typer.Context,
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Prefixes, the most popular first; without any, the base model."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="The base model too, in the first place.")] = False,
    requests: Annotated[int | None, typer.Option(help="How many; 64 without --seconds.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Send for so long; what is under way is waited for.", min=0.1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Requests a second at random moments (Poisson).", min=0.001)
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="Requests under way at once; 8 without --rate.", min=1)
    ] = None,
    prompt_tokens: Annotated[str, typer.Option(help="Range of the prompts' lengths.")] = "20-400",
    output_tokens: Annotated[str, typer.Option(help="Range of the answers' longest lengths.")] = "10-100",
    zipf: Annotated[float, typer.Option(help="Popularity: 0 asks for all models alike.", min=0)] = 1.0,
    seed: Annotated[int, typer.Option(help="Same seed, same requests.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, times in seconds.")] = False,
) -> None:
    """Measure a running service: time to first token, time between tokens, tokens a second.

    Prompts are random bytes as token ids; answers are greedy, streamed, and may end by themselves.
    """
    # httpx2 is loaded only now, so that --help stays quick
    from service.cli import bench_asks, bench_load, bench_report  # noqa: PLC0415

    if rate is not None and concurrency is not None:
        raise CommandError("--rate sends whatever is under way; leave it or --concurrency out")
    asks = bench_asks.draw(
        _names(context, models or [], base=base),
        prompt=bench_asks.lengths(prompt_tokens),
        output=bench_asks.lengths(output_tokens),
        rate=rate,
        zipf=zipf,
        seed=seed,
        api_key=target(context).api_key,
    )
    most = requests if requests is not None or seconds is not None else 64
    with Console(stderr=True).status("sending") as status:
        count = itertools.count(1)
        outcomes, took = bench_load.run(
            target(context).url.rstrip("/"),
            itertools.islice(asks, most),
            concurrency=(concurrency or 8) if rate is None else None,
            seconds=math.inf if seconds is None else seconds,
            told=lambda _: status.update(f"{next(count)} requests ended"),
        )
    found = bench_report.summary(outcomes, took)
    if as_json:
        out().print(plain(json.dumps(found)))
    else:
        bench_report.show(found)
    if not found["answered"]:
        raise CommandError("no request was answered")


def _names(context: typer.Context, models: list[str], *, base: bool) -> list[str]:
    """The models to ask for; also learns, before any load, that the service and the key are good."""
    listed = [model["id"] for model in connect(context).get("/v1/models")["data"]]
    return [*listed[:1], *models] if base or not models else models
