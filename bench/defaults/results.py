"""What the study has found so far, of one base alone. Plain Python: whoever only reads results loads no torch."""

import gzip
from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from typing import Any

from bench.defaults.trials import MIDDLE, Settings, Trial, autos
from bench.lines import Lines
from bench.process import ROOT
from trainer_worker.auto import auto_for

SPEED = 6000.0  # bytes of examples that one thread trains on in a second, before there is a result to tell
Result = dict[str, Any]
Pair = tuple[Result, Result]  # a run and the middle's


class OtherBase(Exception):
    """Results of another base stand in the file; `--into` takes another folder."""


class Results(Lines):
    """The file of the study."""

    def require(self, fingerprint: str | None = None) -> str | None:
        """The digest of the base that all results are of, and are to be of if one is given; None if there is none yet.

        Raises:
            OtherBase: there are others.
        """
        found = {result["fingerprint"] for result in self.all()} | ({fingerprint} if fingerprint else set())
        if len(found) > 1:
            told = ", ".join(sorted(digest[:12] for digest in found))
            raise OtherBase(
                f"{self.path} would mix bases ({told}): their losses cannot be compared. Remove that file to make the study "
                "anew, or name another folder with --into"
            )
        return next(iter(found), None)

    def speed(self) -> float:
        """Bytes of examples that one thread trains on in a second."""
        done = [result for result in self.all() if "seconds" in result]
        seconds = sum(result["seconds"] for result in done)
        return sum(result["work"] for result in done) / seconds if seconds else SPEED


def work(trial: Trial) -> float:
    """Bytes of examples that a run trains on if it does not end early; an MLP counts double."""
    each, examples = _size(trial.dataset)
    settings = trial.settings
    if settings is not None:
        return each * settings.batch * settings.updates * (1 if settings.form == "direct" else 1.5)
    rows = max(1, min(examples, trial.examples or examples) * 9 // 10)
    auto = auto_for(rows)
    return each * auto.batch * auto.updates(-(-rows // auto.batch))


@lru_cache
def _size(dataset: str) -> tuple[float, int]:
    """Mean bytes of a training file's lines, and their number."""
    data = gzip.decompress((ROOT / "examples" / "data" / f"{dataset}_train.jsonl.gz").read_bytes())
    lines = data.count(b"\n")
    return len(data) / lines, lines


def pairs(
    results: Sequence[Result], examples: int | None, settings: Settings | None
) -> dict[tuple[str, int], Pair]:
    """Runs with these settings, each beside the middle's on the same examples and seed, by (dataset, seed)."""
    middle = runs(results, examples, MIDDLE)
    found = runs(results, examples, settings)
    return {at: (found[at], middle[at]) for at in found if at in middle}


def runs(
    results: Sequence[Result], examples: int | None, settings: Settings | None
) -> dict[tuple[str, int], Result]:
    """Runs with these settings, or with what the product now takes by itself, by (dataset, seed)."""
    wanted = None if settings is None else asdict(settings)
    auto = autos() if settings is None else None
    return {
        (r["dataset"], r["seed"]): r
        for r in results
        if "loss" in r and (r["examples"], r["settings"], r["auto"]) == (examples, wanted, auto)
    }
