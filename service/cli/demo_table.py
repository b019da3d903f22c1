"""The demo's table: prompt, base answer, prefix answer, reference. Knows texts and two losses."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table

from service.cli.terminal import plain

LONGEST_CELL = 420


@dataclass(frozen=True, slots=True)
class Row:
    """One prompt and its three continuations."""

    prompt: str
    base: str
    prefix: str
    reference: str


def table(prefix: str, base: str, rows: Sequence[Row], base_loss: float, loss: float) -> Table:
    """A table for one prefix; its title states both held-out losses (nats a token) and perplexities."""
    title = (
        f"{prefix}   held-out loss {base_loss:.3f} -> {loss:.3f}"
        f"   perplexity {math.exp(base_loss):.1f} -> {math.exp(loss):.1f}"
    )
    shown = Table(title=plain(title), title_justify="left", show_lines=True, expand=True)
    for heading in ("prompt", f"{base} alone", f"{base} with {prefix}", "reference"):
        shown.add_column(plain(heading), ratio=1, overflow="fold")
    for row in rows:
        shown.add_row(*(plain(_cell(text)) for text in (row.prompt, row.base, row.prefix, row.reference)))
    return shown


def _cell(text: str) -> str:
    text = text.strip()
    return text if len(text) <= LONGEST_CELL else text[:LONGEST_CELL].rstrip() + "…"
