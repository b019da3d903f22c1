"""All rows that were measured as one Markdown table, the engine's and the service's; what is missing says so.

Run: python -m bench.report [--rows contest,service-sweep] [--quick] [--into docs/performance.md README.md]

`--into` writes the tables into documents, each between `<!-- bench: contest,service-sweep -->` (or
`<!-- bench: all -->`) and `<!-- /bench -->`; between `<!-- bench: plots -->` and the end the plots that are drawn.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path

from bench.plot_names import DRAWN, PLOTS
from bench.results import COMMANDS, choose_device, choose_rows, folder, names, read
from bench.table import HEAD

MARKS = re.compile(r"(?P<open><!-- bench: (?P<rows>[a-z,-]+) -->\n).*?(?P<close><!-- /bench -->)", re.DOTALL)
ALL = tuple(COMMANDS)


def table(place: Path, sections: Sequence[str] = ALL) -> str:
    """The table of these sections, and below it on which machine and of which commit they were measured."""
    lines, ran = [HEAD], {}
    for name in sections:
        found = read(place, name)
        if found is None:
            lines.append(
                f"| section {name} | - | - | - | left out; `{COMMANDS[name]}` measures it | not measured |"
            )
        else:
            lines += found.rows
            kept = f" ({found.kept_disturbed} turns kept though disturbed)" if found.kept_disturbed else ""
            ran.setdefault(f"{found.machine}, {found.commit}", []).append(name + kept)
    lines += [f"\n{where}: {', '.join(measured)}." for where, measured in ran.items()]
    return "\n".join(lines) + "\n"


def images(drawn: Path, beside: Path) -> str:
    """The plots that lie in the folder `drawn`, for a document in the folder `beside`."""
    found = {name: drawn / f"{name}.svg" for name in PLOTS}
    shown = [
        f"![{PLOTS[name]}]({os.path.relpath(path, beside)})" for name, path in found.items() if path.exists()
    ]
    return "\n\n".join(shown) + "\n"


def written(document: str, place: Path, plots: str = "") -> str:
    """The document with its tables as they are measured now.

    Args:
        document: Markdown.
        place: of the results.
        plots: that are put where the document asks for them.

    Raises:
        ValueError: it has no place for a table.
        ArgumentTypeError: it asks for a section that does not exist.
    """
    if not MARKS.search(document):
        raise ValueError("no <!-- bench: all --> and <!-- /bench --> with a table in between")

    def renewed(match: re.Match[str]) -> str:
        if match["rows"] == "plots":
            return f"{match['open']}\n{plots}\n{match['close']}"
        sections = ALL if match["rows"] == "all" else names(match["rows"], ALL)
        return f"{match['open']}\n{table(place, sections)}\n{match['close']}"

    return MARKS.sub(renewed, document)


def main() -> None:
    """Print the table, keep it beside the results, and write it where it was asked for."""
    args = arguments()
    place = folder(quick=args.quick, device=args.device)
    text = table(place, args.rows)
    (place / "table.md").write_text(text)
    print(text, end="")
    for path in args.into:
        shown = images(DRAWN, path.resolve().parent)
        path.write_text(written(path.read_text(), place, shown))
        print(f"{path}: written")


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    choose_rows(parser, ALL)
    choose_device(parser)
    parser.add_argument("--quick", action="store_true", help="what the --quick runs left")
    parser.add_argument("--into", nargs="+", type=Path, default=[], help="documents to write the tables into")
    return parser.parse_args()


if __name__ == "__main__":
    main()
