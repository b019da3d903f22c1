"""What prefixes gain on the carried datasets: base loss beside prefix loss, on inputs that chose nothing.

Every training file is trained on by the product's own code with its default settings, in the forms and
with the starts of the text that are asked for. Each cell reads `held-out / evaluation`: the loss on the
rows of the training file that the run held out, by which it stopped early and kept its best; and the loss on the
evaluation file, whose prompts no run goes by (the defaults were chosen by those of four sets, see docs/defaults.md).
A prompt with several references counts each of them. Of a long training file the first rows are taken. Last in a cell
is BLEU (sacrebleu) of the texts that are written, greedily, for prompts of the evaluation file.

Run: python bench/losses.py [--quick] [--datasets a,b --forms direct,mlp --starts m,0 --rows 3000 --texts 100]
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from pathlib import Path

from prefix_engine import Base, load_base
from prefix_engine.template import Template
from prefix_engine.testing import random_prefix
from prefix_store.evaluation import Evaluation
from prefix_store.hyperparameters import Hyperparameters
from trainer_worker.evaluate import score
from trainer_worker.order import Order
from trainer_worker.pieces import at_once
from trainer_worker.rows import Encoded, Row, encode
from trainer_worker.texts import Prompt, Writer, chosen, scores, write
from trainer_worker.training import Trained, Training

TOKENS = 64  # of a text at most
DATA = Path(__file__).resolve().parents[1] / "examples" / "data"


class Silent:
    """A report that nobody reads."""

    def progress(self, fields) -> None:
        """Forget it."""

    def resolved(self, fields) -> None:
        """Forget it."""

    def event(self, level, type, message, data=None) -> None:  # noqa: A002
        """Forget it."""

    def best(self, fields, payload) -> None:
        """Forget it."""

    def checkpoint(self, update, payload) -> None:
        """Forget it."""

    def stopping(self) -> bool:
        """Never."""
        return False


def main() -> None:
    args = arguments()
    base = load_base(args.base, args.device)
    configurations = [(form, start) for form in args.forms.split(",") for start in args.starts.split(",")]
    heads = [f"{form}, text at {start}" for form, start in configurations]
    print(
        f"| dataset | training rows | tokens scored | base | {' | '.join(heads)} | processor seconds a run |"
    )
    print(f"|{'---|' * (len(heads) + 5)}")
    for name in args.datasets.split(",") if args.datasets else names():
        print(line(base, name, configurations, args), flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="gpt2-mini")
    parser.add_argument("--device", default=None)
    parser.add_argument("--datasets", default="", help="names with commas; all that are carried if empty")
    parser.add_argument("--forms", default="direct,mlp")
    parser.add_argument("--starts", default="m,0")
    parser.add_argument(
        "--texts", type=int, default=100, help="prompts that texts are written for; 0 for none"
    )
    parser.add_argument("--rows", type=int, default=3000, help="most training rows")
    parser.add_argument("--steps", type=int, default=None, help="updates; the product's choice if not given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="300 rows, 20 updates: shows that it works")
    args = parser.parse_args()
    if args.quick:
        args.rows, args.steps, args.texts = 300, 20, min(args.texts, 8)
    return args


def names() -> list[str]:
    return sorted(path.name.removesuffix("_train.jsonl.gz") for path in DATA.glob("*_train.jsonl.gz"))


def line(base: Base, name: str, configurations, args) -> str:
    lines = gzip.decompress((DATA / f"{name}_train.jsonl.gz").read_bytes()).splitlines(keepends=True)
    training = b"".join(lines[: args.rows])
    asked = evaluation(base, name, most=100 if args.quick else 600)
    plain = at_once(score(base, asked, None, 0))
    prompts = prompts_of(base, name, args.texts)
    told = bleu(base, Writer(None, Template.of(base.tokenizer)), prompts)
    cells, seconds, held_out = [], [], set()
    for form, start in configurations:
        began = time.process_time()
        trained = train(base, training, form, start, args)
        seconds.append(time.process_time() - began)
        prefix = trained.prefix
        unseen = at_once(score(base, asked, prefix.tensor.to(base.device), prefix.position_offset)).loss
        held_out.add(f"{trained.metrics['base_loss']:.3f}")
        said = bleu(base, Writer(prefix, trained.template), prompts)
        cells.append(f"{trained.metrics['held_out_loss']:.3f} / {unseen:.3f}{said}")
    rows = min(len(lines), args.rows)
    spent = f"{min(seconds):.0f} to {max(seconds):.0f}"
    return f"| {name} | {rows:,} | {plain.tokens:,} | {' '.join(held_out)} / {plain.loss:.3f}{told} | {' | '.join(cells)} | {spent} |"


def train(base: Base, training: bytes, form, start, args) -> Trained:
    wishes = Hyperparameters(parametrization=form, text_start=start, max_steps=args.steps)
    return Training(base, Order(wishes, args.seed, [("training", training)]), Silent()).train()


def evaluation_file(name: str) -> Path:
    return next(
        DATA / f"{name}_{kind}.jsonl.gz"
        for kind in ("eval", "valid")
        if (DATA / f"{name}_{kind}.jsonl.gz").exists()
    )


def evaluation(base: Base, name: str, most: int) -> list[Encoded]:
    """Rows of the evaluation file that fit the context behind 10 positions; the same for every run."""
    rows = list(references(evaluation_file(name)))
    codes = at_once(encode(rows, Template.of(base.tokenizer), base.tokenizer))
    fitting = [code for code in codes if len(code.tokens) + 10 <= base.config.positions]
    return fitting[:: -(-len(fitting) // most)]


def prompts_of(base: Base, name: str, most: int) -> list[Prompt]:
    """Prompts of the evaluation file with room for an answer behind 10 positions; none if none are wanted."""
    behind = Writer(random_prefix(base, 10, offset=10), Template.of(base.tokenizer))
    return at_once(chosen(base, list(references(evaluation_file(name))), [behind], most)) if most else []


def bleu(base: Base, writer: Writer, prompts: list[Prompt]) -> str:
    """The last part of a cell."""
    if not prompts:
        return ""
    texts = at_once(write(base, writer, prompts, TOKENS))
    return f" / {at_once(scores(Evaluation(metrics=('bleu',)), texts, prompts))['bleu']:.1f}"


def references(path: Path) -> Iterator[Row]:
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for number, text in enumerate(lines, 1):
            row = json.loads(text)
            for reference in row["references"]:
                yield Row(row["prompt"], reference, path.name, number)


if __name__ == "__main__":
    main()
