"""Every scenario at full size, or at a share of it: `make faults [ARGS="--size 0.1 --only jobs,deletes"]`.

Prints a table of what was counted beside what must hold, and exits with 1 if anything that must be 0 is not. Each
scenario's history, and the logs of its processes where it failed, stay in the folder that is named.
"""

import argparse
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from faults import SCENARIOS
from faults.site import missing

ROOT = Path(__file__).resolve().parents[2]


def main():
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1.0, help="share of the full size")
    parser.add_argument("--only", help=f"names of {', '.join(SCENARIOS)}, with commas")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "faults", help="where results are kept")
    asked = parser.parse_args()
    names = asked.only.split(",") if asked.only else list(SCENARIOS)
    if unknown := set(names) - set(SCENARIOS):
        sys.exit(
            f"--only: no scenario is called {', '.join(sorted(unknown))}; there are {', '.join(SCENARIOS)}"
        )
    if lacks := missing():
        sys.exit(lacks)
    asked.out.mkdir(parents=True, exist_ok=True)
    broken = []
    for name in names:
        broken += run(name, asked)
    print((asked.out / "table.md").read_text() if not broken else f"broken: {', '.join(broken)}")
    sys.exit(bool(broken))


def run(name, asked):
    """One scenario; what it broke."""
    scenario = SCENARIOS[name]
    sizes = scenario.sizes(asked.size)
    say = Saying(name)
    say(f"begins: {sizes}")
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"prefixserve-faults-{name}-") as place:
        home = Path(place)
        home.chmod(0o711)  # PostgreSQL's user passes through
        try:
            found = scenario.measure()(home, say, seed=asked.seed, **sizes)
        finally:
            _keep(home, asked.out / name)
    seconds = round(time.monotonic() - began)
    result = {"sizes": sizes, "found": found, "seconds": seconds, "seed": asked.seed, **_about()}
    (asked.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    (asked.out / "table.md").write_text(table(asked.out))
    say(f"{seconds} s: {found}")
    return [f"{name}: {what} is {found[what]}" for what in scenario.nothing if found[what]]


def table(folder):
    """All results that are in a folder, as Markdown."""
    lines = ["| scenario | size | must hold | found | seconds |", "|---|---|---|---|---|"]
    for name, scenario in SCENARIOS.items():
        path = folder / f"{name}.json"
        if not path.exists():
            continue
        result = json.loads(path.read_text())
        found = dict(result["found"])
        sizes = ", ".join(f"{count:,} {what}" for what, count in result["sizes"].items())
        for what in result["sizes"]:
            found.pop(what, None)
        told = "; ".join(f"{what} {_value(value)}" for what, value in found.items())
        lines.append(f"| {name} | {sizes} | {scenario.target} | {told} | {result['seconds']} |")
    return "\n".join(lines) + "\n"


def _value(value):
    if isinstance(value, dict):
        return ", ".join(f"{count:,} {what}" for what, count in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


def _about():
    git = shutil.which("git")
    asked = [git, "describe", "--always", "--dirty", "--exclude=*"]
    commit = (
        subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
        if git
        else ""
    )
    return {"commit": commit, "machine": f"{platform.machine()}, Python {platform.python_version()}"}


def _keep(home, folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in [*home.glob("*.jsonl"), *home.glob("logs/*.log")]:
        shutil.copy(path, folder)


class Saying:
    """Progress of one scenario, with the time that has passed."""

    def __init__(self, name):
        self._name, self._began = name, time.monotonic()

    def __call__(self, text):
        print(f"[{self._name} {time.monotonic() - self._began:6.0f} s] {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
