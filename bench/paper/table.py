"""The tables: what was run, at which sizes, with the gap between prefix and fine-tuning and the paper's figures.

Cells are means over seeds and samples with the standard deviation behind `±`; one run has none. A line that a size
or a setting tells apart stands in a table of its own, so that unlike runs are never averaged.
"""

import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Sequence

from bench.paper.job import draw_of
from bench.paper.published import cited
from bench.paper.records import Record, outdated, scores
from bench.paper.settings import METHODS, UNTRAINED

HEADS = {
    "bleu": "BLEU",
    "bleu_uncased": "BLEU, lower case",
    "nist": "NIST",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "rouge_1": "ROUGE-1, stems",
    "rouge_2": "ROUGE-2, stems",
    "rouge_l_stems": "ROUGE-L, stems",
    "cider": "CIDEr",
    "ter": "TER ↓",
    "slot_error": "slot errors % ↓",
    "slots_missing": "missing %",
    "slots_wrong": "wrong %",
    "slots_added": "added %",
    "bertscore": "BERTScore",
    "moverscore": "MoverScore",
    "bleurt": "BLEURT",
}
DIGITS = {"nist": 2, "cider": 2, "bertscore": 3, "moverscore": 3, "bleurt": 3}
GAP = ("prefix", "fine-tuning")
MARKS = re.compile(r"(<!-- paper: tables -->)\n.*?(<!-- /paper -->)", re.DOTALL)


def report(records: Sequence[Record]) -> str:
    """All tables as markdown; says so where there is nothing."""
    tables, records = [], newest(records)
    for (study, _), some in _by(records, lambda r: (r["study"], sizes(r))).items():
        if study == "rates":
            tables.append(_rates(some))
            continue
        for decoding, group in _views(some):
            tables.append(_table(some, decoding, group))
    return "\n\n".join(tables) or "Nothing was run yet: python -m bench.paper --task e2e"


def written(document: str, text: str) -> str:
    """The document with these tables between its marks.

    Raises:
        ValueError: it has no marks.
    """
    if not MARKS.search(document):
        raise ValueError("no <!-- paper: tables --> and <!-- /paper --> in the document; --write needs both")
    return MARKS.sub(lambda found: f"{found[1]}\n{text}\n{found[2]}", document)


def _by(records: Sequence[Record], key) -> dict:
    found = defaultdict(list)
    for record in records:
        found[key(record)].append(record)
    return found


def sizes(record: Record) -> tuple:
    """(base, task, steps, epochs, rate, scored inputs, rows or 0, held-out rows or 0, version of the draw).

    What must be equal for two models to stand in one table.
    """
    base, task, steps, epochs, rate, inputs = (
        record[name] for name in ("base", "task", "steps", "epochs", "rate", "scored_inputs")
    )
    many = record["study"] in ("low-data", "init")
    rows, held_out = (0, 0) if many else (record["training_rows"], record["held_out_rows"])
    rate = rate if record["study"] != "rates" else None
    return base, task, steps, epochs, rate, inputs, rows, held_out, record.get("draw", 1)


def newest(records: Sequence[Record]) -> list[Record]:
    """Of the records of one model the last: settings may have changed since.

    One model is one study, sizes, rows, held-out rows, method, start, choice of rows and seed. Decodings that an earlier
    record of the same training has beside are not lost.
    """
    found: dict[tuple, Record] = {}
    for record in records:
        rate = record["settings"].get("rate") if record["study"] == "rates" else None
        rows = record["training_rows"], record["held_out_rows"]
        place = (record["study"], sizes(record), *rows, record["method"], label(record), rate)
        earlier = found.get((place, record["sample"], record["seed"]))
        found[place, record["sample"], record["seed"]] = _joined(earlier, record)
    return list(found.values())


def _joined(earlier: Record | None, record: Record) -> Record:
    """The record, with the scores of decodings that only an earlier one of the same training has."""
    facts = ("held_out_loss", "versions")
    alike = earlier is not None and _settings(earlier) == _settings(record)
    if not alike or any(earlier.get(name) != record.get(name) for name in facts):
        return record
    return {**record, "scores": earlier["scores"] | record["scores"]}


def _settings(record: Record) -> str:
    """What it was trained with, but not where the figures come from."""
    told = {n: v for n, v in record["settings"].items() if n != "source" and v is not None}
    told["search"] = record.get("search")  # by an earlier rule it is another method
    return json.dumps(told, sort_keys=True)


def _views(records: Sequence[Record]) -> list[tuple[str, str]]:
    return list(
        dict.fromkeys(
            (decoding, group)
            for record in records
            for decoding, groups in record["scores"].items()
            for group in groups
        )
    )


def label(record: Record) -> str:
    """A line's name: the method, and what it began with where that is the question."""
    method: str = record["method"]
    if record["study"] != "init":
        return method
    start = record["words"] if record["start"] == "words" else f"random, {_RANDOM[record['start']]}"
    return f"{method}: {start}"


_RANDOM = {"uniform": "uniform 0 to 1", "random": "standard normal"}


def _table(records: Sequence[Record], decoding: str, group: str) -> str:
    with_scores = [r for r in records if group in r["scores"].get(decoding, {})]
    with_scores.sort(
        key=lambda r: (r["training_rows"], METHODS.index(r["method"]) if r["method"] in METHODS else 0)
    )
    names = [n for n in HEADS if any(n in scores(r, decoding, group) for r in with_scores)]
    head = [
        "rows",
        "method",
        "rate",
        "models",
        "trained",
        "kept",
        "held-out loss",
        *(HEADS[n] for n in names),
    ]
    lines = [_title(with_scores, decoding, group), "", _line(head), "|" + "---|" * len(head)]
    alike = _by(with_scores, lambda r: (r["training_rows"], label(r), r["held_out_rows"], _settings(r)))
    for (rows, name, *_), some in alike.items():
        cells = [_mean([scores(r, decoding, group).get(n) for r in some], DIGITS.get(n, 1)) for n in names]
        rate = some[0]["settings"].get("rate")
        lines.append(
            _line([f"{rows:,}", name, f"{rate:g}" if rate else "", str(len(some)), *_facts(some), *cells])
        )
        lines += _cited(some[0], group, names)
    lines += _gaps(with_scores, decoding, group, names)
    return "\n".join([*lines, *_missing(with_scores, decoding, group)])


def _title(records: Sequence[Record], decoding: str, group: str) -> str:
    first = records[0]
    updates = f"{_range([r['updates'] for r in records if r['method'] not in UNTRAINED] or [0])} made"
    if first["rate"] is not None:
        updates += f" at rate {first['rate']:g}"
    inputs = f"{first['scored_inputs']:,} inputs" + (
        "" if group == "all" else f", of which the group {group!r}"
    )
    pairs = {(r["sample"], r["seed"]) for r in records}
    return (
        f"**{first['study']}: {first['task']} on {first['base']}**, {decoding}; scored on {inputs}; updates: {updates}; "
        f"held-out rows {_range([r['held_out_rows'] for r in records])}; {len(pairs)} choices of rows and seeds at most"
        f"{_drawn(first)}"
    )


def _drawn(record: Record) -> str:
    """What is to be said of rows that are no longer drawn so."""
    old = record.get("draw", 1) < draw_of(record["study"], record["task"], record["rows"])
    return "; rows drawn by an earlier rule" if old else ""


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _facts(some: Sequence[Record]) -> list[str]:
    first = some[0]
    trained = f"{first['trained']:,} ({100 * first['trained'] / first['base_parameters']:.3g} %)"
    losses = [r["held_out_loss"] for r in some]
    return [trained, size(first["stored_bytes"]), _mean(losses, 3)]


def size(count: int) -> str:
    """Bytes as a person reads them: 1 kB is 1,000 bytes."""
    for unit, above in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= above:
            return f"{count / above:.3g} {unit}"
    return f"{count} B"


def _mean(values: Sequence[float | None], digits: int, *, sign: bool = False) -> str:
    found = [value for value in values if value is not None]
    if not found:
        return "-"
    shown = f"{statistics.mean(found):{'+' if sign else ''}.{digits}f}"
    return shown if len(found) < 2 else f"{shown} ± {statistics.stdev(found):.{digits}f}"


def _cited(record: Record, group: str, names: Sequence[str]) -> list[str]:
    """The paper's own line, where it has one for this base, task and method."""
    seen_only = record["task"] == "webnlg" and record["study"] != "extrapolation"
    found = cited(record["base"], record["task"], "seen" if seen_only else group, record["method"])
    if found is None or record["study"] == "extrapolation":
        return []
    values, source = found
    cells = [f"{values[n]:.{DIGITS.get(n, 1)}f}" if n in values else "" for n in names]
    return [_line(["", f"*{record['method']}, {source}*", "", "", "", "", "", *cells])]


def _gaps(records: Sequence[Record], decoding: str, group: str, names: Sequence[str]) -> list[str]:
    """Prefix minus fine-tuning on the same rows and seed, one line for each number of rows."""
    ours, theirs = ({_pair(r): r for r in records if r["method"] == method} for method in GAP)
    both = [pair for pair in ours if pair in theirs]
    lines = []
    for rows, pairs in _by(both, lambda pair: pair[0]).items():

        def gap(name: str, pairs=pairs) -> list[float]:
            sides = [(scores(ours[p], decoding, group), scores(theirs[p], decoding, group)) for p in pairs]
            return [a[name] - b[name] for a, b in sides if name in a and name in b]

        losses = [ours[p]["held_out_loss"] - theirs[p]["held_out_loss"] for p in pairs]
        cells = [_mean(gap(n), DIGITS.get(n, 1), sign=True) for n in names]
        head = [f"{rows:,}", "**prefix minus fine-tuning**", "", str(len(pairs)), "", ""]
        lines.append(_line([*head, _mean(losses, 3, sign=True), *cells]))
    return lines


def _pair(record: Record) -> tuple[int, int, int, int]:
    return record["training_rows"], record["held_out_rows"], record["sample"], record["seed"]


def _missing(records: Sequence[Record], decoding: str, group: str) -> list[str]:
    """What is not in the table, and why."""
    found = {f"{HEADS[n]}: {why}" for r in records for n, why in r["missing"].items()}
    lines = [f"Not scored: {line}" for line in sorted(found)]
    old = Counter(name for r in records for name in outdated(r, decoding, group))
    why = "scored by an earlier rule; `--rescore` takes it again where the texts are kept"
    lines += [f"Left out: {HEADS[name]} of {count} models, {why}" for name, count in old.items()]
    return ["", *lines] if lines else []


def _rates(records: Sequence[Record]) -> str:
    """Held-out loss by learning rate, mean over the samples and seeds that all rates share; the lowest of a method in bold."""
    first = records[0]
    title = (
        f"**rates: {first['task']} on {first['base']}**, {first['training_rows']:,} rows, "
        f"{first['held_out_rows']:,} held out, base alone {first['base_loss']:.3f}; updates made: "
        f"{_range([r['updates'] for r in records])}; {len({(r['sample'], r['seed']) for r in records})} models a rate at most{_drawn(first)}"
    )
    lines = [title, "", "| method | held-out loss by learning rate |", "|---|---|"]
    for method, some in _by(records, lambda r: r["method"]).items():
        alike = _by(some, lambda r: r["settings"]["rate"])
        shared = set.intersection(*({(r["sample"], r["seed"]) for r in runs} for runs in alike.values()))
        if not shared:
            continue
        tried = {
            rate: statistics.mean(r["held_out_loss"] for r in runs if (r["sample"], r["seed"]) in shared)
            for rate, runs in sorted(alike.items())
        }
        best = min(tried.values())
        cells = [
            f"{rate:g}: " + (f"**{loss:.3f}**" if loss == best else f"{loss:.3f}")
            for rate, loss in tried.items()
        ]
        lines.append(f"| {method} | {', '.join(cells)} |")
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
